/* What reads (waiting.c) and writes (writing.c) on threads share, and who asks about them (reads.c). */
#ifndef SHIFTFS_WAITING_H
#define SHIFTFS_WAITING_H

#include "native.h"

#include <pthread.h>

#define MOST_THREADS 64         /* more than these wait for a worker, as MAX_WORKERS in loop.py */
#define MOST_LOST 448           /* how many more may stand in for those whose callers have been killed */

struct connection;

typedef struct job {
    struct job *next;                   /* of its connection, or of those that are over */
    struct job *next_in_queue;
    struct job *follower;               /* of the same inode, to be done after this one */
    struct connection *connection;
    uint64_t unique, began;
    uint32_t pid;
    int fd;                             /* a duplicate */
    size_t size;
    off_t offset;
    int is_interrupted, is_let_go, is_answered;
    const char *data;                   /* what is to be written; NULL: it is a read */
    int is_collected;                   /* by the kernel, which takes any count for all of it */
    char *own;                          /* where the data is, or NULL if it is in a buffer of the interpreter's */
    uint64_t nodeid;
    PyObject *buffer, *inode;           /* the loop thread's */
} Job;

/* Outlives the Reads that it belongs to as long as a thread is at one of them. */
struct connection {
    int fd;                             /* -1: closed */
    int is_in_use;                      /* by Reads */
    int answering;                      /* threads that are writing to it */
    Job *jobs;
    Job *over;                          /* writes that are, and hold something of the interpreter's */
    Count counts[2];                    /* reads, writes */
};

/* All of this, connections and jobs are guarded by the lock. */
struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wanted, answered;
    Job *first, **last;
    int queued, idle, threads, lost;
};

extern struct pool pool;

typedef struct {
    PyObject_HEAD
    struct connection *connection;
} Reads;

void prepare_once(void);        /* before any of this is used, once */

/* With the lock. */
void answer_job(Job *job, char *room, ssize_t count);   /* a count, or -errno; the lock is let go of meanwhile */
int has_thread(void);
void enqueue(Job *job);
void release_connection(struct connection *connection);
void leave_over(struct connection *connection, Job *job);

ssize_t write_job(const Job *job);              /* on a thread: a count, or -errno */
void drop_over(struct connection *connection);  /* with both locks, the interpreter's too */
PyObject *Reads_written(Reads *self, PyObject *args);

#endif
