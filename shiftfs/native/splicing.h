/* The pipe that large writes take (splicing.c). */
#ifndef SHIFTFS_SPLICING_H
#define SHIFTFS_SPLICING_H

#include <Python.h>

#include <sys/types.h>

typedef struct {
    int is_open, in, out;
    int is_expected;            /* was the last request a large write? */
    size_t left;                /* bytes of the present request that are still in it */
} Pipe;

int init_pipe(Pipe *pipe, PyObject *ends);                  /* None, or (out, in); -1: an exception */
void note_write(Pipe *pipe, size_t size);                   /* one is served */

/* As read(2): the size of a request, of which at least all but the data of a large write is in `room` then. */
ssize_t receive_in_pipe(Pipe *pipe, int fd, char *room, size_t most);
int take_rest(Pipe *pipe, char *room, size_t size);         /* what is left of one of `size`, after all; 0: an exception */
ssize_t write_from_pipe(Pipe *pipe, int fd, off_t offset);  /* how much of it; -1 with errno for nothing */
void drop_rest(Pipe *pipe);

#endif
