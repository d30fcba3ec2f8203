/* What the requests for contents of one mount need (contents.c makes it), and what reading (data.c) and writing (storing.c)
 * share. */
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

/* --- data.c --- */

/* An inode's content, at hand. */
typedef struct {
    PyObject *real;             /* the entry of the real inode that has it */
    PyObject *data;             /* keeps the descriptor open */
    int fd;
} Held;

/* The entry of the real inode that has the content, or NULL where that is special. PLAIN or FAILED */
int content_of(const Lane *lane, Inode *inode, int to_write, PyObject **real);
/* Its descriptor, opened if it is not yet. PLAIN, SPECIAL or FAILED */
int hold(const Lane *lane, const Contents *contents, PyObject *real, int to_write, Held *held);
void let_go(Held *held);
Inode *regular(const Lane *lane, uint64_t nodeid);      /* NULL for all others */
int is_local(const Lane *lane, PyObject *real);         /* Is it on none that is beyond a network, or another process? */
int is_shared(const Contents *contents, uint64_t fh);   /* Does an open file share the descriptor of its inode? Those do that
                                                           the kernel opens without us. */
int is_anybody_waiting(const Lane *lane);               /* Has somebody asked for something meanwhile? */

/* --- storing.c --- */

int write_contents(Lane *lane, Contents *contents, const struct fuse_in_header *header, const char *body, uint64_t began);

extern PyObject *s_data, *s_writable, *s_gate, *s_descriptor;

#endif
