/* Reads that wait for the layer's disk, and writes that are large or would wait, on threads of their own: what workers
 * do for ops.files.read and write.
 *
 * Owns those requests, each with a duplicate of its descriptor (to close one is nothing, on a local filesystem), and the
 * threads, which are started when one would wait and end when there have been none for a while. They hold nothing of
 * the interpreter's, and never its lock: they do it, and write the answer to the connection themselves. That stays its
 * session's: nothing is written to it after `close` (reads.c). What a write holds of the interpreter's (writing.c) is left
 * in a list when it is over. Writes to one inode follow each other on one thread: its filesystem would let only one
 * through. What the lock guards is said in waiting.h.
 */
#include "waiting.h"
#include "threads.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#define LINGER 5                /* seconds */
#define STACK (128 * 1024)

struct pool pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void prepare_pool(void)
{
    prepare_condition(&pool.wanted);
    prepare_condition(&pool.answered);
    pool.first = NULL;
    pool.last = &pool.first;
    pool.queued = pool.idle = pool.threads = pool.lost = 0;
}

static void forget_threads(void)    /* in a child: they are the parent's */
{
    pthread_mutex_init(&pool.lock, NULL);
    prepare_pool();
}

void prepare_once(void)
{
    prepare_pool();
    pthread_atfork(NULL, NULL, forget_threads);
}

/* --- on the threads --- */

/* As much as there is up to the end of the file, which a short answer means to the kernel: a count, or -errno. */
static ssize_t read_fully(const Job *job, char *room)
{
    size_t done = 0;
    while (done < job->size) {
        ssize_t more = pread(job->fd, room + done, job->size - done, job->offset + (off_t)done);
        if (more < 0 && errno == EINTR)
            continue;
        if (more < 0)
            return -errno;
        if (more == 0)
            break;
        done += (size_t)more;
    }
    return (ssize_t)done;
}

static void count_one(Count *counts, uint64_t began, int is_error)
{
    uint64_t took = now() - began;
    counts->count++;
    counts->errors += is_error != 0;
    counts->total += took;
    if (took > counts->longest)
        counts->longest = took;
}

static void unlink_job(Job *job)
{
    Job **at = &job->connection->jobs;
    while (*at != job)
        at = &(*at)->next;
    *at = job->next;
}

void release_connection(struct connection *connection)
{
    if (!connection->is_in_use && connection->jobs == NULL && connection->over == NULL && connection->answering == 0)
        free(connection);
}

/* With the lock, which is let go of meanwhile: the job may be gone afterwards. A count, or -errno. */
void answer_job(Job *job, char *room, ssize_t count)
{
    struct connection *connection = job->connection;
    if (connection->fd < 0 || job->is_answered)
        return;
    job->is_answered = 1;
    int fd = connection->fd;
    uint64_t began = job->began;
    int is_write = job->data != NULL;
    size_t size = count < 0 ? 0 : (size_t)count;
    struct fuse_out_header header = {(uint32_t)(sizeof header + size), count < 0 ? (int)count : 0, job->unique};
    struct iovec parts[] = {{&header, sizeof header}, {room, size}};
    connection->answering++;
    pthread_mutex_unlock(&pool.lock);
    /* Nobody may be waiting any more, or the mount be gone; what the kernel cannot take, it has failed. */
    ssize_t ignored = writev(fd, parts, size ? 2 : 1);
    (void)ignored;
    pthread_mutex_lock(&pool.lock);
    count_one(&connection->counts[is_write], began, count < 0);
    if (--connection->answering == 0)
        pthread_cond_broadcast(&pool.answered);
}

/* With the lock, which is let go of meanwhile. Nobody waits any more for what has been answered before it began. */
static void do_write(Job *job)
{
    int is_wanted = !job->is_answered;
    pthread_mutex_unlock(&pool.lock);
    ssize_t count = is_wanted ? write_job(job) : -EINTR;
    pthread_mutex_lock(&pool.lock);
    struct fuse_write_out written = {count < 0 ? 0 : (uint32_t)count};
    answer_job(job, (char *)&written, count < 0 ? count : (ssize_t)sizeof written);
}

/* The same. */
static void do_read(Job *job, char **room, size_t *space)
{
    pthread_mutex_unlock(&pool.lock);
    if (*space < job->size) {
        free(*room);
        *room = malloc(job->size);
        *space = *room == NULL ? 0 : job->size;
    }
    ssize_t count = *space < job->size ? -ENOMEM : read_fully(job, *room);
    pthread_mutex_lock(&pool.lock);
    answer_job(job, *room, count);
}

/* The same. The next that has been waiting for this one, if any. */
static Job *do_job(Job *job, char **room, size_t *space)
{
    int is_write = job->data != NULL;
    if (is_write)
        do_write(job);
    else
        do_read(job, room, space);
    pthread_mutex_unlock(&pool.lock);
    close(job->fd);
    pthread_mutex_lock(&pool.lock);
    struct connection *connection = job->connection;
    Job *next = job->follower;
    pool.lost -= job->is_let_go;
    unlink_job(job);
    if (is_write)
        leave_over(connection, job);
    else
        free(job);
    release_connection(connection);
    return next;
}

static void *work(void *unused)
{
    char *room = NULL;
    size_t space = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct timespec until = seconds_from_now(LINGER);
        int error = 0;
        pool.idle++;
        while (pool.first == NULL && error == 0)
            error = pthread_cond_timedwait(&pool.wanted, &pool.lock, &until);
        pool.idle--;
        Job *job = pool.first;
        if (job == NULL)
            break;
        pool.first = job->next_in_queue;
        if (pool.first == NULL)
            pool.last = &pool.first;
        pool.queued--;
        while (job != NULL)
            job = do_job(job, &room, &space);
    }
    pool.threads--;
    pthread_mutex_unlock(&pool.lock);
    free(room);
    return NULL;
}

/* --- on the loop thread --- */

/* One more, with the lock. */
static int start_worker(void)
{
    int is_started = start_thread(work, STACK);
    pool.threads += is_started;
    return is_started;
}

/* Is there a thread for one more? Those that wait in the queue have one that is idle each, or on its way. */
int has_thread(void)
{
    int most = MOST_THREADS + (pool.lost < MOST_LOST ? pool.lost : MOST_LOST);
    return pool.idle > pool.queued || (pool.threads < most && start_worker());
}

void enqueue(Job *job)
{
    *pool.last = job;
    pool.last = &job->next_in_queue;
    pool.queued++;
    pthread_cond_signal(&pool.wanted);
}

int read_aside(PyObject *reads, const struct fuse_in_header *header, int fd, size_t size, off_t offset, uint64_t began)
{
    struct connection *connection = ((Reads *)reads)->connection;
    Job *job = connection == NULL ? NULL : calloc(1, sizeof *job);
    if (job == NULL)
        return 0;
    *job = (Job){.connection = connection, .unique = header->unique, .began = began, .pid = header->pid,
                 .size = size, .offset = offset};
    pthread_mutex_lock(&pool.lock);
    int is_taken = connection->fd >= 0 && has_thread() && (job->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0;
    if (is_taken) {
        job->next = connection->jobs;
        connection->jobs = job;
        enqueue(job);
    }
    pthread_mutex_unlock(&pool.lock);
    if (!is_taken)
        free(job);
    return is_taken;
}
