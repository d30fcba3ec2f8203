/* Requests for locks that nothing is in the way of: what shiftfs/locks/table.py does with them, on files that it has locked
 * before.
 *
 * Owns nothing. Leaves to Python whatever waits, fails, opens a file, or (flock(2)) is shared; what it has done of a
 * request by then does no harm when it is done again. Loop thread.
 */
#include "ranges.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

static int is_empty(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    int is_true = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    PyErr_Clear();
    return is_true == 0;
}

#define MOST_FILES 8

/* The descriptors that a file's ranges, or the whole of it (flock(2)), are locked by; -1 if there are none yet, or none
 * that can hold such a lock. */
static int descriptors(PyObject *file, int is_whole, int kind, int *fds)
{
    PyObject *real = PyObject_GetAttrString(file, "real");
    PyObject *files = real == NULL ? NULL : PyObject_GetAttrString(real, "files");
    int needs_writing = !is_whole && kind != F_RDLCK;
    int count = files != NULL && PyList_Check(files) && PyList_GET_SIZE(files) <= MOST_FILES ? 0 : -1;
    for (Py_ssize_t at = 0; count >= 0 && at < PyList_GET_SIZE(files); at++) {
        PyObject *one = PyList_GET_ITEM(files, at), *is_writable = NULL;
        PyObject *fd = PyObject_GetAttrString(one, is_whole ? "whole" : "ranges");
        if (needs_writing)
            is_writable = PyObject_GetAttrString(one, "is_writable");
        fds[count] = fd == NULL ? -1 : (int)PyLong_AsLong(fd);
        count = fds[count] < 0 || (needs_writing && is_writable != Py_True) ? -1 : count + 1;
        Py_XDECREF(fd);
        Py_XDECREF(is_writable);
    }
    Py_XDECREF(real);
    Py_XDECREF(files);
    PyErr_Clear();
    return count;
}

/* What is asked for, of a file that is known. */
typedef struct {
    PyObject *file;
    FileLocks *ranges;
    Row row;
    int is_whole, count, fds[MOST_FILES];
} Asked;

static int hold(const Asked *asked, uint64_t start, uint64_t end, int kind)
{
    static const int operations[] = {[F_RDLCK] = LOCK_SH, [F_WRLCK] = LOCK_EX, [F_UNLCK] = LOCK_UN};
    int failed = 0;
    Py_BEGIN_ALLOW_THREADS
    for (int at = 0; at < asked->count && !failed; at++) {
        struct flock lock = {.l_type = (short)kind, .l_whence = SEEK_SET, .l_start = (off_t)start};
        lock.l_len = end == LAST ? 0 : (off_t)(end - start + 1);
        failed = asked->is_whole ? flock(asked->fds[at], operations[kind] | LOCK_NB)
                                  : fcntl(asked->fds[at], F_OFD_SETLK, &lock);
    }
    Py_END_ALLOW_THREADS
    return !failed;
}

static int unlock_range(const Asked *asked)
{
    const Row *row = &asked->row;
    Span *spans;
    ssize_t parts = set_row(asked->ranges, *row) ? find_needed(asked->ranges, row->start, row->end, &spans) : -1;
    int is_done = parts >= 0;
    for (ssize_t at = 0; is_done && at < parts; at++)
        is_done = hold(asked, spans[at].start, spans[at].end, spans[at].kind);
    if (parts >= 0)
        free(spans);
    return is_done;
}

/* Has all been told that has happened to the inode so far, also by those in the layers? */
static int is_told(Lane *lane, Inode *inode)
{
    if ((!is_written(lane, inode) && !is_followed(inode)) || !hears_nothing(lane))
        return 0;
    PyObject *answer = PyObject_CallNoArgs(PyTuple_GET_ITEM(lane->locks, 1));
    int is_so = answer == Py_True;
    Py_XDECREF(answer);
    return is_so;
}

static int lock_range(const Asked *asked)
{
    const Row *row = &asked->row;
    return find_conflict(asked->ranges, row->owner, row->start, row->end, row->kind) == NULL
        && hold(asked, row->start, row->end, row->kind) && set_row(asked->ranges, *row);
}

/* flock(2), where nobody else has any: `whole` is who has, by owner. */
static int lock_whole(const Asked *asked)
{
    PyObject *whole = PyObject_GetAttrString(asked->file, "whole");
    PyObject *owner = PyLong_FromUnsignedLongLong(asked->row.owner), *held = NULL;
    int kind = asked->row.kind, is_done = whole != NULL && owner != NULL && PyDict_CheckExact(whole);
    if (is_done && kind == F_UNLCK)
        is_done = PyDict_GET_SIZE(whole) == 1 && PyDict_Contains(whole, owner) == 1 && hold(asked, 0, LAST, kind)
            && PyDict_DelItem(whole, owner) == 0;
    else if (is_done)
        is_done = PyDict_GET_SIZE(whole) == 0 && (held = tell_row(asked->ranges, &asked->row)) != NULL
            && hold(asked, 0, LAST, kind) && PyDict_SetItem(whole, owner, held) == 0;
    Py_XDECREF(whole);
    Py_XDECREF(owner);
    Py_XDECREF(held);
    return is_done;
}

static int note_handle(const Asked *asked)
{
    PyObject *handles = PyObject_GetAttrString(asked->file, "handles");
    PyObject *fh = PyLong_FromUnsignedLongLong(asked->row.fh);
    int is_noted = handles != NULL && fh != NULL && PySet_Check(handles) && PySet_Add(handles, fh) == 0;
    Py_XDECREF(handles);
    Py_XDECREF(fh);
    return is_noted;
}

/* Is it done? */
static int take_lock(Lane *lane, Inode *inode, const Asked *asked)
{
    int is_unlocking = asked->row.kind == F_UNLCK;
    if (asked->is_whole ? !lock_whole(asked) : is_unlocking ? !unlock_range(asked) : !lock_range(asked))
        return 0;
    return is_unlocking || (note_handle(asked) && is_told(lane, inode));
}

int serve_lock(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began)
{
    const struct fuse_lk_in *in = (const void *)body;
    if (lane->locks == Py_None || length != sizeof *in || in->lk_flags & ~(uint32_t)FUSE_LK_FLOCK
        || in->lk.start > in->lk.end || in->lk.end > LAST || in->lk.type > F_UNLCK)
        return SPECIAL;
    Inode **slot = find_nodeid(&lane->store->by_nodeid, header->nodeid), *inode = slot == NULL ? NULL : *slot;
    PyObject *file = inode == NULL ? NULL : PyDict_GetItem(PyTuple_GET_ITEM(lane->locks, 0), (PyObject *)inode);
    if (file == NULL || !is_empty(file, "waiters"))
        return SPECIAL;
    int is_whole = in->lk_flags != 0, kind = (int)in->lk.type, is_done = 0;
    PyObject *ranges = PyObject_GetAttrString(file, "ranges");
    Asked asked = {
        .file = file, .ranges = (FileLocks *)ranges, .is_whole = is_whole,
        .row = {in->owner, in->lk.start, in->lk.end, in->fh, in->lk.pid, kind},
    };
    if (is_whole) {
        asked.row.owner = in->fh;      /* as ops.locks has it */
        asked.row.start = 0;
        asked.row.end = LAST;
    }
    asked.count = descriptors(file, is_whole, kind, asked.fds);
    if (ranges != NULL && Py_TYPE(ranges) == &FileLocksType && asked.count > 0
        && asked.ranges->count + 2 < MANY)
        is_done = take_lock(lane, inode, &asked);
    Py_XDECREF(ranges);
    PyErr_Clear();
    return is_done ? respond(lane, header, 0, NULL, 0, began) : SPECIAL;
}
