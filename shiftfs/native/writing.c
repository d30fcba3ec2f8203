/* Writes on threads (waiting.c): those that are large, and those that would wait for another of the same inode, or for a
 * disk that is busy.
 *
 * Owns what such a write holds of the interpreter's until the loop thread takes it back: the buffer that a large one was
 * received in, instead of which the next requests get another; and its inode, which is at work (ops.context) until then.
 * Small ones have a copy of their data.
 */
#include "waiting.h"

#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define SMALL (64 * 1024)
#define AHEAD 4                         /* large ones under way for which there are buffers that have been used before */
#define PATIENCE 2000000                /* nanoseconds; as SLOW_WRITE in storing.c */

/* --- on the threads --- */

/* All of it, or what could be; the error for all of it, where the kernel would take a part for all. */
ssize_t write_job(const Job *job)
{
    size_t done = 0;
    do {
        ssize_t more = pwrite(job->fd, job->data + done, job->size - done, job->offset + (off_t)done);
        if (more < 0 && errno == EINTR)
            continue;
        if (more < 0 && (done == 0 || job->is_collected))
            return -errno;
        if (more <= 0)
            break;
        done += (size_t)more;
    } while (done < job->size);
    return done < job->size && job->is_collected ? -EIO : (ssize_t)done;
}

static int release_job(void *argument)
{
    Job *job = argument;
    Py_XDECREF(job->buffer);
    Py_XDECREF(job->inode);
    free(job->own);
    free(job);
    return 0;
}

void leave_over(struct connection *connection, Job *job)
{
    pthread_cond_broadcast(&pool.answered);
    if (connection->is_in_use) {
        job->next = connection->over;
        __atomic_store_n(&connection->over, job, __ATOMIC_RELEASE);
    } else
        Py_AddPendingCall(release_job, job);  /* its session has ended */
}

/* --- on the loop thread --- */

void drop_over(struct connection *connection)
{
    while (connection->over != NULL) {
        Job *job = connection->over;
        connection->over = job->next;
        release_job(job);
    }
}

/* Change how many threads are at an inode. */
static int count_work(PyObject *at_work, PyObject *inode, long change)
{
    PyObject *count = PyDict_GetItemWithError(at_work, inode);
    long left = (count == NULL ? 0 : PyLong_AsLong(count)) + change;
    if (PyErr_Occurred())
        return -1;
    if (left <= 0)
        return count == NULL ? 0 : PyDict_DelItem(at_work, inode);
    PyObject *value = PyLong_FromLong(left);
    int failed = value == NULL || PyDict_SetItem(at_work, inode, value);
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* Take back what writes hold that are over. */
int take_over(PyObject *reads, PyObject *at_work, PyObject *buffers)
{
    struct connection *connection = ((Reads *)reads)->connection;
    if (connection == NULL || __atomic_load_n(&connection->over, __ATOMIC_ACQUIRE) == NULL)
        return 0;
    pthread_mutex_lock(&pool.lock);
    Job *job = connection->over;
    connection->over = NULL;
    pthread_mutex_unlock(&pool.lock);
    int failed = 0;
    while (job != NULL) {
        Job *next = job->next;
        failed |= count_work(at_work, job->inode, -1);
        if (job->buffer != NULL && buffers != NULL) {
            PyObject *done = PyObject_CallMethod(buffers, "recycle", "O", job->buffer);
            failed |= done == NULL;
            Py_XDECREF(done);
        }
        release_job(job);
        job = next;
    }
    return failed ? -1 : 0;
}

/* The last of the writes to an inode that are to be done one after another, if there are any. */
static Job *last_of(const struct connection *connection, uint64_t nodeid)
{
    Job *job = connection->jobs;
    while (job != NULL && (job->data == NULL || job->nodeid != nodeid || job->follower != NULL))
        job = job->next;
    return job;
}

/* With the lock. It is done after those of its inode that are under way. */
static void hand_over(struct connection *connection, Job *job)
{
    Job *last = last_of(connection, job->nodeid);
    job->next = connection->jobs;
    connection->jobs = job;
    if (last != NULL)
        last->follower = job;
    else {
        has_thread();  /* the one that was at the last will do, too */
        enqueue(job);
    }
}

static int large_ones(const struct connection *connection)
{
    int count = 0;
    for (const Job *job = connection->jobs; job != NULL; job = job->next)
        count += job->buffer != NULL;
    return count;
}

/* A kernel that sends more than can be written would have each in memory that nobody has used before, which costs as much
 * as the writing: so the next is not received before one is done. 0 if that takes long: the disk is busy. */
static int wait_for_buffer(const Writing *writing, struct connection *connection)
{
    struct timespec until;
    int is_quick = 1;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PATIENCE;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&pool.lock);
    while (is_quick && large_ones(connection) >= AHEAD)
        is_quick = pthread_cond_timedwait(&pool.answered, &pool.lock, &until) == 0;
    pthread_mutex_unlock(&pool.lock);
    Py_END_ALLOW_THREADS
    return is_quick;
}

/* Its data, which is to stay where it is while the next request is received. */
static int keep_data(Job *job, PyObject *buffers, const char *data)
{
    if (job->size <= SMALL) {
        if ((job->own = malloc(job->size)) == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(job->own, data, job->size);
        job->data = job->own;
        return 0;
    }
    job->buffer = PyObject_CallMethod(buffers, "detach", NULL);
    job->data = data;
    return job->buffer == NULL ? -1 : 0;
}

int write_aside(Writing *writing, const struct fuse_in_header *header, int fd, uint64_t began)
{
    const struct fuse_write_in *request = (const void *)(header + 1);
    struct connection *connection = ((Reads *)writing->reads)->connection;
    if (connection == NULL || request->size == 0 || (int64_t)request->offset < 0)
        return SPECIAL;
    if (request->size > SMALL && !writing->is_slow) {
        writing->is_slow = !wait_for_buffer(writing, connection);
        if (take_over(writing->reads, writing->at_work, writing->buffers))
            return FAILED;
    }
    Job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return SPECIAL;
    *job = (Job){.connection = connection, .unique = header->unique, .began = began, .pid = header->pid,
                 .size = request->size, .offset = (off_t)request->offset, .nodeid = header->nodeid,
                 .is_collected = (request->write_flags & FUSE_WRITE_CACHE) != 0};
    pthread_mutex_lock(&pool.lock);
    int is_taken = connection->fd >= 0 && (last_of(connection, job->nodeid) != NULL || has_thread())
        && (job->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0;
    pthread_mutex_unlock(&pool.lock);
    if (!is_taken) {
        free(job);
        return SPECIAL;
    }
    job->inode = Py_NewRef(writing->inode);
    if (count_work(writing->at_work, writing->inode, 1)
        || keep_data(job, writing->buffers, (const char *)(request + 1))) {
        close(job->fd);
        release_job(job);
        return FAILED;
    }
    pthread_mutex_lock(&pool.lock);
    hand_over(connection, job);
    pthread_mutex_unlock(&pool.lock);
    return PLAIN;
}

static int is_being_written(const struct connection *connection, uint64_t nodeid)
{
    for (const Job *job = connection->jobs; job != NULL; job = job->next)
        if (job->data != NULL && job->nodeid == nodeid)
            return 1;
    return 0;
}

/* written(nodeid, seconds): wait until what is being written to an inode by threads is; on a worker */
PyObject *Reads_written(Reads *self, PyObject *args)
{
    unsigned long long nodeid;
    double seconds;
    if (!PyArg_ParseTuple(args, "Kd", &nodeid, &seconds))
        return NULL;
    struct timespec until;
    Py_BEGIN_ALLOW_THREADS
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    pthread_mutex_lock(&pool.lock);
    while (is_being_written(self->connection, nodeid)
           && pthread_cond_timedwait(&pool.answered, &pool.lock, &until) == 0)
        ;
    pthread_mutex_unlock(&pool.lock);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}
