/* What is written to files, where nothing about it is special: what ops.files.write does with nearly all requests. At once,
 * from memory or from the pipe (splicing.c), or by threads (writing.c).
 *
 * Owns nothing: which devices are slow, and which times files had before, the handlers keep. Synchronous writes, those that
 * take set-id bits, what lies beyond a network, and whatever fails are SPECIAL, and left to Python before anything is
 * written. Loop thread.
 */
#include "contents.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#define SMALL_WRITE (64 * 1024)         /* as in ops/files.py */
#define SLOW_WRITE 2000000              /* nanoseconds */
#define SLOW_DEVICE 1.0                 /* seconds */

static double seconds(void)
{
    return (double)now() * 1e-9;
}

static int note_time(PyObject *dictionary, PyObject *key, double time)
{
    PyObject *value = key == NULL ? NULL : PyFloat_FromDouble(time);
    int failed = value == NULL || PyDict_SetItem(dictionary, key, value);
    Py_XDECREF(value);
    return failed;
}

/* Do the writes of a device wait at present? */
static int is_slow_device(PyObject *slow_until, uint64_t device)
{
    if (PyDict_GET_SIZE(slow_until) == 0)
        return 0;
    PyObject *key = PyLong_FromUnsignedLongLong(device);
    PyObject *until = key == NULL ? NULL : PyDict_GetItemWithError(slow_until, key);
    int is_so = until != NULL && PyFloat_AsDouble(until) > seconds();
    if (until != NULL && !is_so)
        PyDict_DelItem(slow_until, key);
    Py_XDECREF(key);
    PyErr_Clear();
    return is_so;
}

static int note_slow(PyObject *dictionary, uint64_t device, double until)
{
    PyObject *key = PyLong_FromUnsignedLongLong(device);
    int failed = note_time(dictionary, key, until);
    Py_XDECREF(key);
    return failed;
}

/* Is nobody else writing to the inode? */
static int is_free(const Contents *contents, Inode *inode)
{
    return PyDict_GET_SIZE(contents->at_work) == 0 || PyDict_Contains(contents->at_work, (PyObject *)inode) == 0;
}

/* Does a write go to the page cache at once, with nobody holding the inode there, and nobody waiting for it to end? What
 * the kernel has collected comes in a row, so that those who wait are of the same row: each is done with the data still
 * in the processor's cache, as on another thread it would not be. */
static int is_quick(const Lane *lane, const Contents *contents, const struct fuse_write_in *request, int is_slow_now,
                    Inode *inode)
{
    int is_small = request->size <= SMALL_WRITE || request->write_flags & FUSE_WRITE_CACHE;
    return !is_slow_now && (is_small || !is_anybody_waiting(lane)) && is_free(contents, inode);
}

/* Write all; a count that is short only where an error came after part of it. `flags` as for pwritev2(2). */
static ssize_t write_fully(int fd, const char *data, size_t size, off_t offset, int flags)
{
    size_t done = 0;
    do {
        struct iovec part = {(char *)data + done, size - done};
        ssize_t more = pwritev2(fd, &part, 1, offset + (off_t)done, flags);
        if (more < 0 && done == 0)
            return -1;
        if (more <= 0)
            break;
        done += (size_t)more;
    } while (done < size);
    return (ssize_t)done;
}

/* The time that a file had before the kernel's writes, in case none is told (ops.times). */
static int note_before(const Contents *contents, Inode *inode, int fd, double when)
{
    if (contents->before == Py_None)
        return 0;
    int is_noted = PyDict_Contains(contents->before, (PyObject *)inode);
    struct stat found;
    if (is_noted == 0 && fstat(fd, &found) == 0) {
        PyObject *time = Py_BuildValue("Ll", (long long)found.st_mtim.tv_sec, (long)found.st_mtim.tv_nsec);
        is_noted = time == NULL || PyDict_SetItem(contents->before, (PyObject *)inode, time) ? -1 : 1;
        Py_XDECREF(time);
    }
    return is_noted < 0 || note_time(contents->written, (PyObject *)inode, when);
}

/* Are threads, or workers, writing to it? */
int is_at_work(const Lane *lane, Inode *inode)
{
    const Contents *contents = (const Contents *)lane->contents;
    int is_so = PyDict_GET_SIZE(contents->at_work) != 0 && PyDict_Contains(contents->at_work, (PyObject *)inode) != 0;
    PyErr_Clear();
    return is_so;
}

static int remove_key(PyObject *dictionary, PyObject *key)
{
    int has = PyDict_Contains(dictionary, key);
    return has <= 0 ? has : PyDict_DelItem(dictionary, key);
}

int note_told(const Lane *lane, Inode *inode)
{
    const Contents *contents = (const Contents *)lane->contents;
    if (contents->before == Py_None || PyDict_GET_SIZE(contents->before) == 0)
        return 0;
    return remove_key(contents->before, (PyObject *)inode) || remove_key(contents->written, (PyObject *)inode);
}

/* Has it set-id bits, which go with the content, as whoever writes may not keep them (FUSE_HANDLE_KILLPRIV_V2)? */
static int loses_set_ids(const struct fuse_write_in *request, int fd)
{
    struct stat found;
    return request->write_flags & FUSE_WRITE_KILL_SUIDGID && (fstat(fd, &found) || found.st_mode & (S_ISUID | S_ISGID));
}

static int appends(const struct fuse_write_in *request)
{
    return request->flags & O_APPEND && !(request->write_flags & FUSE_WRITE_CACHE);
}

/* Write and answer; SPECIAL if nothing could be written. */
static int write_at_once(Lane *lane, Contents *contents, const struct fuse_in_header *header, Inode *inode, int fd,
                         const char *body, double started, uint64_t began)
{
    const struct fuse_write_in *request = (const void *)body;
    /* The kernel's idea of the end may be stale; the layer knows where it is. */
    int is_elsewhere = 0, is_append = appends(request);
    off_t offset = (off_t)request->offset;
    uint64_t device = inode->key.device;
    struct stat after;
    ssize_t count;
    Py_BEGIN_ALLOW_THREADS
    if (lane->pipe.left)
        count = write_from_pipe(&lane->pipe, fd, offset);
    else
        count = write_fully(fd, body + sizeof *request, request->size, offset, is_append ? RWF_APPEND : 0);
    is_elsewhere = is_append && count >= 0 && (fstat(fd, &after) || after.st_size != offset + count);
    Py_END_ALLOW_THREADS
    /* Nothing has been written; or not all of what the kernel has collected, which takes any count for all of it. */
    if (count < 0 || (request->write_flags & FUSE_WRITE_CACHE && (size_t)count < request->size))
        return SPECIAL;
    if (is_elsewhere) {
        PyObject *told = PyObject_CallFunctionObjArgs(contents->elsewhere, (PyObject *)inode, NULL);
        Py_XDECREF(told);
        PyErr_Clear();
    }
    if (seconds() - started > SLOW_WRITE * 1e-9 && note_slow(contents->slow_until, device, started + SLOW_DEVICE))
        PyErr_Clear();  /* the next may be slow as well */
    struct fuse_write_out written = {(uint32_t)count};
    return respond(lane, header, 0, &written, sizeof written, began);
}

static int write_after_copy(Lane *lane, Contents *contents, const struct fuse_in_header *header, Inode *inode,
                            const char *body, uint64_t began)
{
    const struct fuse_write_in *request = (const void *)body;
    if (request->size > SMALL_WRITE)
        return SPECIAL;
    double started = seconds();
    int is_fit = is_free(contents, inode) && !is_slow_device(contents->slow_until, inode->key.device), copy = -1;
    int result = is_fit ? bring_up(lane, inode, NULL, &copy) : SPECIAL;
    if (result == PLAIN && loses_set_ids(request, copy))
        result = SPECIAL;
    if (result == PLAIN && request->write_flags & FUSE_WRITE_CACHE && note_before(contents, inode, copy, started))
        result = FAILED;
    if (result == PLAIN)
        result = write_at_once(lane, contents, header, inode, copy, body, started, began);
    finish_copy(lane);
    return result;
}

/* What is appended goes by a flag that splice(2) has not; of what the kernel has collected, all is to be there in case that
 * some of it cannot be written. */
static int may_be_moved(const struct fuse_write_in *request)
{
    return !appends(request) && !(request->write_flags & FUSE_WRITE_CACHE);
}

int write_contents(Lane *lane, Contents *contents, const struct fuse_in_header *header, const char *body, uint64_t began)
{
    const struct fuse_write_in *request = (const void *)body;
    Inode *inode = regular(lane, header->nodeid);
    if (!contents->writes || inode == NULL || request->flags & (O_DSYNC | O_SYNC) || !is_shared(contents, request->fh))
        return SPECIAL;
    PyObject *real;
    if (take_back(lane) || content_of(lane, inode, 1, &real))
        return FAILED;
    uint64_t device = inode->key.device;
    int is_slow_now = is_slow_device(contents->slow_until, device);
    int is_quick_now = real != NULL && is_quick(lane, contents, request, is_slow_now, inode);
    int is_moved = is_quick_now && may_be_moved(request);
    if (!is_moved && !take_rest(&lane->pipe, (char *)header, header->len)) {
        Py_XDECREF(real);
        return FAILED;
    }
    if (real == NULL)
        return write_after_copy(lane, contents, header, inode, body, began);
    Held held;
    int result = is_local(lane, real) ? hold(lane, contents, real, 1, &held) : SPECIAL;
    Py_DECREF(real);
    if (result != PLAIN) {
        if (result == SPECIAL)
            PyErr_Clear();
        return result;
    }
    double started = seconds();
    if (loses_set_ids(request, held.fd))
        result = SPECIAL;
    else if (note_time(contents->writers, held.real, started)
             || (request->write_flags & FUSE_WRITE_CACHE && note_before(contents, inode, held.fd, started)))
        result = FAILED;
    else if (is_quick_now) {
        if (is_moved)
            note_write(&lane->pipe, request->size);
        result = write_at_once(lane, contents, header, inode, held.fd, body, started, began);
    } else if (appends(request))
        result = SPECIAL;
    else {
        Writing writing = {contents->aside, contents->at_work, lane->buffers, (PyObject *)inode, is_slow_now};
        result = write_aside(&writing, header, held.fd, began);
        if (writing.is_slow > is_slow_now && note_slow(contents->slow_until, device, started + SLOW_DEVICE))
            PyErr_Clear();
    }
    let_go(&held);
    return result;
}

int take_back(Lane *lane)
{
    const Contents *contents = (const Contents *)lane->contents;
    return take_over(contents->aside, contents->at_work, lane->buffers);
}
