/* Removed files are closed on a thread of its own: with the last descriptor the filesystem gives back what the file had,
 * for which the next request need not wait.
 *
 * Owns what it has been given until that is closed, and the thread, which is started when there is something and ends when
 * there has been nothing for a while. It holds nothing of the interpreter's. Has room for a few only: who has more closes
 * them himself. Loop thread, but for what the lock guards.
 */
#include "native.h"
#include "threads.h"

#include <unistd.h>

#define MOST 16                 /* descriptors that nobody else has counted */
#define LINGER 5                /* seconds */
#define STACK (64 * 1024)
#define PATIENCE 2              /* seconds that whoever has no space left waits */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wanted, done;
    int fds[MOST], first, count, has_thread;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void prepare_queue(void)
{
    prepare_condition(&queue.wanted);
    prepare_condition(&queue.done);
    queue.first = queue.count = queue.has_thread = 0;
}

static void forget_queue(void)      /* in a child: the thread is the parent's, and so is what it closes */
{
    pthread_mutex_init(&queue.lock, NULL);
    prepare_queue();
}

static void prepare_once(void)
{
    prepare_queue();
    pthread_atfork(NULL, NULL, forget_queue);
}

static void *close_all(void *unused)
{
    pthread_mutex_lock(&queue.lock);
    for (;;) {
        struct timespec until = seconds_from_now(LINGER);
        int error = 0;
        while (queue.count == 0 && error == 0)
            error = pthread_cond_timedwait(&queue.wanted, &queue.lock, &until);
        if (queue.count == 0)
            break;
        int fd = queue.fds[queue.first];
        pthread_mutex_unlock(&queue.lock);
        close(fd);
        pthread_mutex_lock(&queue.lock);
        queue.first = (queue.first + 1) % MOST;
        if (--queue.count == 0)
            pthread_cond_broadcast(&queue.done);
    }
    queue.has_thread = 0;
    pthread_mutex_unlock(&queue.lock);
    return NULL;
}

int may_close_aside(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare_once);
    pthread_mutex_lock(&queue.lock);
    int may = queue.count < MOST;
    pthread_mutex_unlock(&queue.lock);
    return may;
}

void close_aside(int fd)
{
    pthread_mutex_lock(&queue.lock);
    if (!queue.has_thread)
        queue.has_thread = start_thread(close_all, STACK);
    int is_taken = queue.has_thread;
    if (is_taken) {
        queue.fds[(queue.first + queue.count++) % MOST] = fd;
        pthread_cond_signal(&queue.wanted);
    }
    pthread_mutex_unlock(&queue.lock);
    if (!is_taken)
        close(fd);
}

/* closed_all() -> was there anything left to be closed? It is by now, or has taken too long. */
PyObject *native_closed_all(PyObject *module, PyObject *unused)
{
    struct timespec until = seconds_from_now(PATIENCE);
    int was_any;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&queue.lock);
    was_any = queue.count > 0;
    for (int error = 0; queue.count > 0 && error == 0;)
        error = pthread_cond_timedwait(&queue.done, &queue.lock, &until);
    pthread_mutex_unlock(&queue.lock);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(was_any);
}
