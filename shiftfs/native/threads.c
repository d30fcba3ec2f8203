/* What threads are begun with that hold nothing of the interpreter's, nor its lock: reads and writes that wait (waiting.c),
 * and what is closed aside (closing.c).
 *
 * Owns nothing. Any thread.
 */
#include "threads.h"

#include <signal.h>

/* Signals are for those who run Python. */
int start_thread(void *(*work)(void *), size_t stack)
{
    sigset_t all, before;
    pthread_t thread;
    pthread_attr_t detached;
    sigfillset(&all);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, stack);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int is_started = pthread_create(&thread, &detached, work, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    return is_started;
}

void prepare_condition(pthread_cond_t *condition)
{
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &clock);
    pthread_condattr_destroy(&clock);
}

struct timespec seconds_from_now(int seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += seconds;
    return until;
}
