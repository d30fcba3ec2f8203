/* Threads that hold nothing of the interpreter's (threads.c). */
#ifndef SHIFTFS_THREADS_H
#define SHIFTFS_THREADS_H

#include <pthread.h>
#include <time.h>

int start_thread(void *(*work)(void *), size_t stack);  /* detached; 0 where there are too many */
void prepare_condition(pthread_cond_t *condition);      /* waited for until a time of seconds_from_now */
struct timespec seconds_from_now(int seconds);

#endif
