/* How long the loop waits for a disk, awake: while that is quick, it takes less time than to wake a thread that waits in the
 * loop's place.
 *
 * Owns nothing: each kind of work has a note of how long the disk has been too slow for that. Any thread.
 */
#include "native.h"

#include <sched.h>
#include <time.h>

#define AT_FIRST 200000             /* nanoseconds that are waited without letting others run */
#define SLOW 10000000               /* for which nothing is tried, once a wait was in vain; then twice as long, ... */
#define SLOWEST 1280000000          /* ... up to here */

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int is_slow(const Patience *patience)
{
    return patience->slow_until != 0 && now() < patience->slow_until;
}

static void note_slow(Patience *patience)
{
    uint64_t before = patience->slow_for;
    patience->slow_for = before == 0 ? SLOW : before < SLOWEST ? before * 2 : SLOWEST;
    patience->slow_until = now() + patience->slow_for;
}

Wait begin_wait(Patience *patience, uint64_t most)
{
    uint64_t began = now();
    return (Wait){patience, began, began + most};
}

int goes_on(const Wait *wait)
{
    uint64_t at = now();
    if (at >= wait->until) {
        note_slow(wait->patience);
        return 0;
    }
    /* Others' turns could take longer than the disk does, and are no sign of a slow one. */
    if (at > wait->began + AT_FIRST)
        sched_yield();
    return 1;
}

void was_worth_it(const Wait *wait)
{
    if (now() < wait->until)
        wait->patience->slow_for = 0;
    else
        note_slow(wait->patience);  /* to begin with it took long, for others that keep the disk busy */
}
