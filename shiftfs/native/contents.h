/* What the requests for contents of one mount need (contents.c makes it, data.c uses it). */
#ifndef SHIFTFS_CONTENTS_H
#define SHIFTFS_CONTENTS_H

#include "native.h"

/* Of what its handlers have. */
typedef struct {
    PyObject_HEAD
    PyObject *handles;          /* fh -> OpenFile */
    PyObject *at_work;          /* inodes that workers are writing to */
    PyObject *slow_until;       /* device -> time.monotonic(), of those whose writes wait */
    PyObject *writers;          /* entry -> time.monotonic() of its last write */
    PyObject *before, *written; /* as ops.times; None where the kernel collects nothing */
    PyObject *ahead;            /* as ops.collected */
    PyObject *keep;             /* keep(entry, fd, writable) -> Descriptor: it is the entry's from then on */
    PyObject *elsewhere;        /* elsewhere(inode): something was appended where the kernel does not expect it */
    PyObject *aside;            /* Reads: where those go that have to wait */
    Py_buffer scratch;
    Patience patience;          /* with reads */
    int noatime;                /* O_NOATIME or 0 */
    int reads, writes;          /* is that left to the handlers, as somebody else listens? */
} Contents;

extern PyObject *s_data, *s_writable, *s_gate, *s_descriptor;

#endif
