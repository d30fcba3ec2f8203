/* How the lane gets its next request, and learns that there is something else to do.
 *
 * Owns which other descriptors have been found ready, until their owners are told. Looks at them whenever its own
 * connection has nothing to say, and every few requests; while requests follow each other closely it waits for the next
 * awake. Never looks into a request. Loop thread.
 */
#include "native.h"

#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#define LOOK 8                    /* requests served before the lane looks whether there is anything else */
#define SPIN 100000               /* nanoseconds that a next request is waited for without sleeping: what it may cost to
                                   * wake a processor of a virtual machine, and whoever asks has to be woken himself */

/* Is there something at a descriptor that is not our connection? Changes of the layers that concern nobody are nothing. */
static int has_news(Lane *lane, int fd)
{
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(lane->readers); at++) {
        PyObject *reader = PyList_GET_ITEM(lane->readers, at);
        if (reader_fd(reader) == fd)
            return skip_events(reader);
    }
    return 1;
}

/* Is our connection one of those that are ready? Others' descriptors that are go to `heard`: some tell of a change but
 * once, to whoever polls first (fs/proc_namespace.c, mounts_poll). */
static int is_ours_ready(Lane *lane, const struct epoll_event *events, int ready)
{
    int is_ours = 0;
    for (int at = 0; at < ready; at++)
        if (events[at].data.fd == lane->fd)
            is_ours = 1;
        else if (has_news(lane, events[at].data.fd) && lane->heard_count < EVENTS)
            lane->heard[lane->heard_count++] = events[at].data.fd;
    return is_ours;
}

static int poll_once(Lane *lane)
{
    struct epoll_event events[EVENTS];
    return is_ours_ready(lane, events, epoll_wait(lane->poll, events, EVENTS, 0));
}

int hears_nothing(Lane *lane)
{
    poll_once(lane);
    return lane->heard_count == 0;
}

/* While requests follow each other closely, the next is waited for awake. Is there time left for that? */
static int waits_awake(const Lane *lane)
{
    return lane->spins && lane->gap < SPIN && now() - lane->answered_at < SPIN;
}

/* The same as poll_once, but awake until something is ready, or it has been in vain. Others have the interpreter, and the
 * processor, meanwhile. */
static int poll_awake(Lane *lane)
{
    struct epoll_event events[EVENTS];
    int ready;
    Py_BEGIN_ALLOW_THREADS
    do {
        sched_yield();
        ready = epoll_wait(lane->poll, events, EVENTS, 0);
    } while (ready == 0 && waits_awake(lane));
    Py_END_ALLOW_THREADS
    return is_ours_ready(lane, events, ready);
}

/* Is our connection ready, and nothing else? */
int is_next_ours(Lane *lane)
{
    int is_ours = poll_once(lane);
    while (!is_ours && lane->heard_count == 0 && waits_awake(lane))
        is_ours = poll_awake(lane);
    return is_ours && lane->heard_count == 0;
}

/* The size of the next request, 0 if something else is to be done first, or -1 with errno. Of several clients there is
 * always one who asks: only now and then is looked at what else there is. */
ssize_t receive(Lane *lane, PyObject *buffer, int served)
{
    char *room = PyByteArray_AS_STRING(buffer);
    size_t most = (size_t)PyByteArray_GET_SIZE(buffer);
    if (served % LOOK == LOOK - 1) {
        poll_once(lane);
        if (lane->heard_count)
            return 0;
    }
    for (;;) {
        ssize_t size = lane->pipe.is_expected ? receive_in_pipe(&lane->pipe, lane->fd, room, most)
            : read(lane->fd, room, most);
        if (size >= 0 || errno != EAGAIN || served == 0)
            return size;
        if (!is_next_ours(lane))
            return 0;
    }
}

/* The pipe is empty again. What has been served needs no rest; others see a request as it came. */
int without_pipe(Lane *lane, PyObject *buffer, size_t size, int result)
{
    if (result == PLAIN)
        drop_rest(&lane->pipe);
    else if (!take_rest(&lane->pipe, PyByteArray_AS_STRING(buffer), size))
        result = FAILED;
    return result;
}
