/* Contents of files, where nothing about them is special: what ops.files.read and write do with nearly all requests.
 *
 * Owns nothing of a file: the descriptor through which an inode is read and written is its entry's as it is at each
 * request, for a copy-up makes it another one. Synchronous writes, what lies beyond a network, and
 * whatever fails are SPECIAL, and left to Python before anything is written. Loop thread.
 */
#include "contents.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#define REGULAR (S_IFREG >> 12)
#define SMALL_WRITE (64 * 1024)         /* as in ops/files.py */
#define READ_PATIENCE 400000            /* nanoseconds */
#define READ_SOON (32 * 1024)           /* bytes; with larger ones somebody reads ahead, and the next is on its way */
#define SLOW_WRITE 2000000              /* nanoseconds */
#define SLOW_DEVICE 1.0                 /* seconds */

/* An inode's content, at hand. */
typedef struct {
    PyObject *real;             /* the entry of the real inode that has it */
    PyObject *data;             /* keeps the descriptor open */
    int fd;
} Held;

PyObject *s_data, *s_writable, *s_gate, *s_descriptor;

static void let_go(Held *held)
{
    Py_CLEAR(held->real);
    Py_CLEAR(held->data);
}

/* The entry of the real inode that has the content; NULL where that is special. */
static PyObject *content_of(const Lane *lane, PyObject *entry, int to_write)
{
    if (!lane->is_layered)
        return Py_NewRef(entry);
    PyObject *lowers = PyObject_GetAttr(entry, s_lowers), *real = NULL;
    Py_ssize_t count = lowers != NULL && PyTuple_Check(lowers) ? PyTuple_GET_SIZE(lowers) : -1;
    if (count == 0)
        real = PyObject_GetAttr(entry, s_upper);
    else if (count > 0 && !to_write)
        real = Py_NewRef(PyTuple_GET_ITEM(lowers, count - 1));
    Py_XDECREF(lowers);
    if (real != NULL && to_write) {
        PyObject *gate = PyObject_GetAttr(entry, s_gate);  /* is it being copied up? */
        if (gate != Py_None)
            Py_CLEAR(real);
        Py_XDECREF(gate);
    }
    if (real == Py_None)
        Py_CLEAR(real);
    PyErr_Clear();
    return real;
}

/* The descriptor that an entry has open for its content, if it has one that will do. */
static int is_open(PyObject *real, int to_write, Held *held)
{
    PyObject *data = PyObject_GetAttr(real, s_data);
    PyObject *fd = data == NULL || data == Py_None ? NULL : PyObject_GetAttr(data, s_fd);
    PyObject *writable = fd == NULL || !to_write ? NULL : PyObject_GetAttr(data, s_writable);
    held->fd = fd == NULL ? -1 : (int)PyLong_AsLong(fd);
    int is_fit = held->fd >= 0 && (!to_write || writable == Py_True);
    Py_XDECREF(fd);
    Py_XDECREF(writable);
    PyErr_Clear();
    if (!is_fit) {
        Py_XDECREF(data);
        return 0;
    }
    held->data = data;
    held->real = Py_NewRef(real);
    return 1;
}

/* The same, once it has been opened: PLAIN, SPECIAL or FAILED. */
static int open_first(const Lane *lane, const Contents *contents, PyObject *real, int to_write, Held *held)
{
    held->fd = open_content(lane, real, (to_write ? O_RDWR : O_RDONLY) | contents->noatime);
    if (held->fd < 0)
        return SPECIAL;
    held->data = PyObject_CallFunction(contents->keep, "OiO", real, held->fd, to_write ? Py_True : Py_False);
    if (held->data == NULL)
        return FAILED;
    held->real = Py_NewRef(real);
    return PLAIN;
}

/* Is it on none that is beyond a network, or another process? */
static int is_local(const Lane *lane, PyObject *real)
{
    Key key;
    PyObject *its_own = PyObject_GetAttrString(real, "key");
    int is_so = its_own != NULL && !read_key(its_own, &key) && device_of(lane, key.device) != NULL;
    Py_XDECREF(its_own);
    PyErr_Clear();
    return is_so;
}

/* Does an open file share the descriptor of its inode? Those do that the kernel opens without us. */
static int is_shared(const Contents *contents, uint64_t fh)
{
    if (fh == 0 || PyDict_GET_SIZE(contents->handles) == 0)
        return 1;
    PyObject *number = PyLong_FromUnsignedLongLong(fh);
    PyObject *opened = number == NULL ? NULL : PyDict_GetItemWithError(contents->handles, number);
    PyObject *own = opened == NULL ? NULL : PyObject_GetAttr(opened, s_descriptor);
    int is_so = opened == NULL ? !PyErr_Occurred() : own == Py_None;
    Py_XDECREF(number);
    Py_XDECREF(own);
    PyErr_Clear();
    return is_so;
}

static Inode *regular(const Lane *lane, uint64_t nodeid)
{
    Inode **slot = find_nodeid(&lane->store->by_nodeid, nodeid);
    return slot != NULL && (*slot)->key.kind == REGULAR ? *slot : NULL;
}

/* Has it been given what is not in the layer yet? */
static int is_ahead(const Contents *contents, Inode *inode)
{
    return PyDict_GET_SIZE(contents->ahead) != 0 && PyDict_Contains(contents->ahead, (PyObject *)inode) != 0;
}

/* Read what is in the page cache of the layer: how much that is, or -errno; EAGAIN for what is not all there. A short
 * answer means the end of the file to the kernel, which would believe it. */
static ssize_t read_cached(int fd, char *room, size_t size, off_t offset)
{
    struct iovec part = {room, size};
    ssize_t count = preadv2(fd, &part, 1, offset, RWF_NOWAIT);
    if (count < 0)
        return -errno;
    if ((size_t)count == size)
        return count;
    part = (struct iovec){room + count, size - (size_t)count};
    return preadv2(fd, &part, 1, offset + count, RWF_NOWAIT) == 0 ? count : -EAGAIN;
}

/* Has somebody asked for something meanwhile? */
static int is_anybody_waiting(const Lane *lane)
{
    struct pollfd ours = {.fd = lane->fd, .events = POLLIN};
    return poll(&ours, 1, 0) != 0;
}

/* The same, as soon as a quick disk has given it, unless others wait; -EAGAIN if it has not. */
static ssize_t read_soon(const Lane *lane, Contents *contents, int fd, size_t size, off_t offset)
{
    if (size > READ_SOON || is_slow(&contents->patience) || is_anybody_waiting(lane))
        return -EAGAIN;
    posix_fadvise(fd, offset, (off_t)size, POSIX_FADV_WILLNEED);
    Wait wait = begin_wait(&contents->patience, READ_PATIENCE);
    ssize_t count;
    do
        count = read_cached(fd, contents->scratch.buf, size, offset);
    while (count == -EAGAIN && !is_anybody_waiting(lane) && goes_on(&wait));
    if (count != -EAGAIN)
        was_worth_it(&wait);
    return count;
}

static int read_contents(Lane *lane, Contents *contents, const struct fuse_in_header *header, const char *body,
                         uint64_t began)
{
    const struct fuse_read_in *request = (const void *)body;
    Inode *inode = regular(lane, header->nodeid);
    if (!contents->reads || inode == NULL || !is_shared(contents, request->fh) || is_ahead(contents, inode))
        return SPECIAL;
    PyObject *entry = PyObject_GetAttrString((PyObject *)inode, "entry");  /* made, if nobody has asked for it so far */
    if (entry == NULL)
        return FAILED;
    Held held;
    PyObject *real = content_of(lane, entry, 0);
    int result = real == NULL ? SPECIAL : is_open(real, 0, &held) ? PLAIN : open_first(lane, contents, real, 0, &held);
    Py_XDECREF(real);
    Py_DECREF(entry);
    if (result != PLAIN)
        return result;
    size_t size = request->size < (size_t)contents->scratch.len ? request->size : (size_t)contents->scratch.len;
    off_t offset = (off_t)request->offset;
    ssize_t count;
    Py_BEGIN_ALLOW_THREADS
    count = read_cached(held.fd, contents->scratch.buf, size, offset);
    Py_END_ALLOW_THREADS
    int is_aside = (count == -EAGAIN || count == -EOPNOTSUPP) && is_local(lane, held.real);
    if (is_aside && count == -EAGAIN && lane->spins) {
        Py_BEGIN_ALLOW_THREADS
        count = read_soon(lane, contents, held.fd, size, offset);
        Py_END_ALLOW_THREADS
        is_aside = count == -EAGAIN;
    }
    int is_taken = is_aside && read_aside(contents->aside, header, held.fd, size, offset, began);
    let_go(&held);
    return is_taken ? PLAIN : count < 0 ? SPECIAL
        : respond(lane, header, 0, contents->scratch.buf, (size_t)count, began);
}

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
    if (take_back(lane) || (lane->pipe.left && !take_rest(&lane->pipe, (char *)header, header->len)))
        return FAILED;
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

static int write_contents(Lane *lane, Contents *contents, const struct fuse_in_header *header, const char *body,
                          uint64_t began)
{
    const struct fuse_write_in *request = (const void *)body;
    Inode *inode = regular(lane, header->nodeid);
    if (!contents->writes || inode == NULL || request->flags & (O_DSYNC | O_SYNC) || !is_shared(contents, request->fh))
        return SPECIAL;
    PyObject *entry = PyObject_GetAttrString((PyObject *)inode, "entry");  /* made, if nobody has asked for it so far */
    if (entry == NULL)
        return FAILED;
    Held held;
    PyObject *real = content_of(lane, entry, 1);
    Py_DECREF(entry);
    if (real == NULL)
        return write_after_copy(lane, contents, header, inode, body, began);
    int result = !is_local(lane, real) ? SPECIAL
        : is_open(real, 1, &held) ? PLAIN : open_first(lane, contents, real, 1, &held);
    Py_DECREF(real);
    if (result != PLAIN) {
        if (result == SPECIAL)
            PyErr_Clear();
        return result;
    }
    if (loses_set_ids(request, held.fd)) {
        let_go(&held);
        return SPECIAL;
    }
    double started = seconds();
    if (note_time(contents->writers, held.real, started)
        || (request->write_flags & FUSE_WRITE_CACHE && note_before(contents, inode, held.fd, started)) || take_back(lane)) {
        let_go(&held);
        return FAILED;
    }
    uint64_t device = inode->key.device;
    int is_slow_now = is_slow_device(contents->slow_until, device);
    int is_quick_now = is_quick(lane, contents, request, is_slow_now, inode);
    /* What is appended goes by a flag that splice(2) has not; of what the kernel has collected, all is to be there in case
     * that some of it cannot be written. */
    int is_moved = is_quick_now && !appends(request) && !(request->write_flags & FUSE_WRITE_CACHE);
    if (is_moved)
        note_write(&lane->pipe, request->size);
    if (!is_moved && lane->pipe.left && !take_rest(&lane->pipe, (char *)header, header->len))
        result = FAILED;
    else if (is_quick_now)
        result = write_at_once(lane, contents, header, inode, held.fd, body, started, began);
    else if (appends(request))
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

int serve_contents(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began)
{
    Contents *contents = (Contents *)lane->contents;
    int agents = is_agents(lane, header->pid);
    if (agents || PyDict_GET_SIZE(lane->viewed) != 0)
        return agents < 0 ? FAILED : SPECIAL;
    if (header->opcode == FUSE_READ && length == sizeof(struct fuse_read_in))
        return read_contents(lane, contents, header, body, began);
    const struct fuse_write_in *write = (const void *)body;
    if (header->opcode == FUSE_WRITE && length >= sizeof *write && length - sizeof *write == write->size)
        return write_contents(lane, contents, header, body, began);
    return SPECIAL;
}

int take_back(Lane *lane)
{
    const Contents *contents = (const Contents *)lane->contents;
    return take_over(contents->aside, contents->at_work, lane->buffers);
}
