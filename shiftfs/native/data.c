/* Contents of files, where nothing about them is special: what of a file is open, and reading it, which is what
 * ops.files.read does with nearly all requests. storing.c has writing.
 *
 * Owns nothing of a file: the descriptor through which an inode is read and written is its entry's as it is at each
 * request, for a copy-up makes it another one. What lies beyond a network, and whatever fails, is SPECIAL, and left to
 * Python. Loop thread.
 */
#include "contents.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#define REGULAR (S_IFREG >> 12)
#define READ_PATIENCE 400000            /* nanoseconds */
#define READ_SOON (32 * 1024)           /* bytes; with larger ones somebody reads ahead, and the next is on its way */

PyObject *s_data, *s_writable, *s_gate, *s_descriptor;

/* --- what is open --- */

void let_go(Held *held)
{
    Py_CLEAR(held->real);
    Py_CLEAR(held->data);
}

/* The entry of the real inode that has the content; NULL where that is special. */
static PyObject *real_of(const Lane *lane, PyObject *entry, int to_write)
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

int content_of(const Lane *lane, Inode *inode, int to_write, PyObject **real)
{
    *real = NULL;
    PyObject *entry = PyObject_GetAttrString((PyObject *)inode, "entry");  /* made, if nobody has asked for it so far */
    if (entry == NULL)
        return FAILED;
    *real = real_of(lane, entry, to_write);
    Py_DECREF(entry);
    return PLAIN;
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

int hold(const Lane *lane, const Contents *contents, PyObject *real, int to_write, Held *held)
{
    return is_open(real, to_write, held) ? PLAIN : open_first(lane, contents, real, to_write, held);
}

int is_local(const Lane *lane, PyObject *real)
{
    Key key;
    PyObject *its_own = PyObject_GetAttrString(real, "key");
    int is_so = its_own != NULL && !read_key(its_own, &key) && device_of(lane, key.device) != NULL;
    Py_XDECREF(its_own);
    PyErr_Clear();
    return is_so;
}

int is_shared(const Contents *contents, uint64_t fh)
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

Inode *regular(const Lane *lane, uint64_t nodeid)
{
    Inode **slot = find_nodeid(&lane->store->by_nodeid, nodeid);
    return slot != NULL && (*slot)->key.kind == REGULAR ? *slot : NULL;
}

int is_anybody_waiting(const Lane *lane)
{
    struct pollfd ours = {.fd = lane->fd, .events = POLLIN};
    return poll(&ours, 1, 0) != 0;
}

/* --- reading --- */

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
    Held held;
    PyObject *real;
    int result = content_of(lane, inode, 0, &real);
    if (result == PLAIN)
        result = real == NULL ? SPECIAL : hold(lane, contents, real, 0, &held);
    Py_XDECREF(real);
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
