/* The lane: requests that are read, served and answered without the interpreter.
 *
 * Owns counts of what it has served: LOOKUP, GETATTR, GETXATTR, IOCTL, FORGET and BATCH_FORGET, and what changes.c, data.c,
 * locks.c and packing.c serve; all others, and those of the reflecting agents, are handed back as they came. How a request
 * comes is receiving.c's. Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define BATCH 256                 /* requests served before the loop looks at everything else */
#define LARGE 8192                /* blocks of an unlinked file, as in ops/namespace.py */

/* May an inode that the kernel forgets just go? Directories stay as long as anything in them is known. */
static int is_forgotten_alone(Lane *lane, Inode *inode, uint64_t count)
{
    Inode *parent = (Inode *)inode->parent;
    return !is_directory(inode) && (uint64_t)inode->nlookup == count && (parent == NULL || parent->nlookup > 0)
        && (inode->watch == NULL || inode->watch == Py_None) && children_of(inode) == NULL && has_one_place(lane, inode);
}

/* Nothing that was told leads to it any more. */
static int untell(Inode *inode)
{
    Inode *parent = (Inode *)inode->parent;
    PyObject *children = parent == NULL ? NULL : children_of(parent);
    int is_told = children != NULL && PyDict_GetItem(children, inode->name) == (PyObject *)inode;
    return is_told && PyDict_DelItem(children, inode->name);
}

/* May what goes with an inode's last name take long to free? */
static int may_be_large(Lane *lane, Inode *inode)
{
    Part part;
    struct statx found;
    if (!inode->unlinked)
        return 0;
    if (!top_of(lane, inode, &part))
        return 1;
    int is_small = look_at(part.fd, &found) == 0 && found.stx_blocks <= LARGE;
    release_parts(&part, 1);
    return !is_small;
}

/* Of a removed file, what keeps it when all else is closed; -1 if nothing is to. */
static int last_of(Lane *lane, Inode *inode)
{
    Part part;
    if (!inode->unlinked || !lane->spins || !may_close_aside() || !top_of(lane, inode, &part))
        return -1;
    /* what a lower has is still there */
    int fd = is_changed_here(lane, part.layer) ? fcntl(part.fd, F_DUPFD_CLOEXEC, 0) : -1;
    release_parts(&part, 1);
    return fd;
}

/* The kernel drops references. Directories, and what has several names, go in Python. `left` is what the request says: if
 * this fails, the handlers get it, and none is dropped twice. */
static int forget(Lane *lane, uint64_t nodeid, uint64_t *left)
{
    uint64_t count = *left;
    *left = 0;
    Inode **slot = find_nodeid(&lane->store->by_nodeid, nodeid);
    if (slot == NULL)
        return PLAIN;
    if (!is_forgotten_alone(lane, *slot, count)) {
        PyObject *done = PyObject_CallFunction(lane->forget, "KK", (unsigned long long)nodeid,
                                               (unsigned long long)count);
        Py_XDECREF(done);
        return done == NULL ? FAILED : PLAIN;
    }
    Inode *inode = take(lane->store, nodeid);
    inode->nlookup = 0;
    int failed = untell(inode);
    if (!failed && inode->entry != NULL) {
        int last = last_of(lane, inode);
        PyObject *is_to_be_seen = last < 0 && may_be_large(lane, inode) ? Py_True : Py_False;
        PyObject *done = PyObject_CallFunctionObjArgs(lane->let_go, (PyObject *)inode, is_to_be_seen, NULL);
        failed = done == NULL;
        Py_XDECREF(done);
        if (last >= 0)
            close_aside(last);
    }
    Py_DECREF(inode);
    return failed ? FAILED : PLAIN;
}

static void count(Lane *lane, uint32_t opcode, uint64_t began)
{
    uint64_t ended = now(), took = ended - began;
    Count *one = &lane->counts[opcode];
    one->count++;
    one->total += took;
    if (took > one->longest)
        one->longest = took;
    lane->answered_at = ended;
}

int is_agents(Lane *lane, uint32_t pid)
{
    if (PyDict_GET_SIZE(lane->agents) == 0)
        return 0;
    PyObject *number = PyLong_FromUnsignedLong(pid);
    int is_one = number == NULL ? -1 : PyDict_Contains(lane->agents, number);
    Py_XDECREF(number);
    return is_one;
}

int respond(Lane *lane, const struct fuse_in_header *request, int error, void *payload, size_t size, uint64_t began)
{
    struct fuse_out_header header = {(uint32_t)(sizeof header + size), -error, request->unique};
    struct iovec parts[] = {{&header, sizeof header}, {payload, size}};
    ssize_t written = size ? writev(lane->fd, parts, 2) : write(lane->fd, &header, sizeof header);
    /* nobody may be waiting any more, or the mount be gone */
    if (written < 0 && errno != ENOENT && errno != ENODEV && errno != ECONNABORTED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return FAILED;
    }
    lane->counts[request->opcode].errors += error != 0;
    count(lane, request->opcode, began);
    return PLAIN;
}

static int answer(Lane *lane, const struct fuse_in_header *request, int error, void *reply, size_t size, uint64_t began)
{
    size_t header = sizeof(struct fuse_out_header);
    return respond(lane, request, error, (char *)reply + header, size - header, began);
}

/* Is it one text of that many bytes, its end included? */
static int is_text(const char *text, size_t size)
{
    return size >= 2 && memchr(text, 0, size) == text + size - 1;
}

/* Has it extensions (total_extlen, which headers before Linux 6.3 do not have)? */
static int is_extended(const struct fuse_in_header *header)
{
    uint16_t length;
    memcpy(&length, (const char *)header + 36, sizeof length);
    return length != 0;
}

/* Serve one request, if it is nothing special. */
static int serve(Lane *lane, char *message, size_t size, uint64_t began)
{
    const struct fuse_in_header *header = (const void *)message;
    char *body = message + sizeof *header;
    if (size < sizeof *header || header->len != size || is_extended(header))
        return SPECIAL;
    size_t length = size - sizeof *header;
    if (header->opcode == FUSE_LOOKUP) {
        struct {
            struct fuse_out_header header;
            struct fuse_entry_out entry;
        } found;
        int agents = is_agents(lane, header->pid);
        if (agents || !is_text(body, length) || memchr(body, '/', length))
            return agents < 0 ? FAILED : SPECIAL;
        int result = lookup(lane, header->nodeid, body, &found.entry);
        if (result == SPECIAL || result == FAILED)
            return result;
        return answer(lane, header, 0, &found, sizeof found, began);
    }
    if (header->opcode == FUSE_GETATTR) {
        struct {
            struct fuse_out_header header;
            struct fuse_attr_out attr;
        } found;
        int agents = is_agents(lane, header->pid);
        if (agents || PyDict_GET_SIZE(lane->viewed) != 0)
            return agents < 0 ? FAILED : SPECIAL;
        int result = attributes_of(lane, header->nodeid, &found.attr);
        return result == PLAIN ? answer(lane, header, 0, &found, sizeof found, began) : result;
    }
    struct fuse_out_header none;
    if (header->opcode == FUSE_IOCTL && is_for_terminals(lane, header->nodeid, body, length))
        return answer(lane, header, ENOTTY, &none, sizeof none, began);
    if (header->opcode == FUSE_GETXATTR) {
        const char *name = body + sizeof(struct fuse_getxattr_in);
        int agents = is_agents(lane, header->pid);
        if (agents || length <= sizeof(struct fuse_getxattr_in) || !is_text(name, body + length - name)
            || !is_without(lane, header->nodeid, name))
            return agents < 0 ? FAILED : SPECIAL;
        return answer(lane, header, ENODATA, &none, sizeof none, began);
    }
    if (header->opcode < OPCODES && lane->may.opcodes >> header->opcode & 1) {
        Changed changed;
        int agents = is_agents(lane, header->pid);
        if (agents)
            return agents < 0 ? FAILED : SPECIAL;
        int result = change(lane, header, body, length, &changed);
        size_t answered = sizeof changed.header + changed.size;
        if (result == PLAIN)
            result = answer(lane, header, changed.error, &changed, answered, began);
        finish_copy(lane);
        return result;
    }
    if (header->opcode == FUSE_READ || header->opcode == FUSE_WRITE)
        return serve_contents(lane, header, body, length, began);
    int is_lock = header->opcode == FUSE_SETLK || header->opcode == FUSE_SETLKW;
    if (is_lock || header->opcode == FUSE_READDIR || header->opcode == FUSE_READDIRPLUS) {
        int agents = is_agents(lane, header->pid);
        if (agents)
            return agents < 0 ? FAILED : SPECIAL;
        return is_lock ? serve_lock(lane, header, body, length, began) : serve_listing(lane, header, body, length, began);
    }
    if (header->opcode == FUSE_FORGET && length == sizeof(struct fuse_forget_in)) {
        struct fuse_forget_in *one = (void *)body;
        if (forget(lane, header->nodeid, &one->nlookup))
            return FAILED;
    } else if (header->opcode == FUSE_BATCH_FORGET && length >= sizeof(struct fuse_batch_forget_in)) {
        const struct fuse_batch_forget_in *batch = (const void *)body;
        struct fuse_forget_one *one = (void *)(batch + 1);
        if (length != sizeof *batch + (size_t)batch->count * sizeof *one)
            return SPECIAL;
        for (uint32_t at = 0; at < batch->count; at++)
            if (forget(lane, one[at].nodeid, &one[at].nlookup))
                return FAILED;
    } else
        return SPECIAL;
    count(lane, header->opcode, began);
    return PLAIN;
}

/* serve() -> the size of a request that is left to the handlers, in the present buffer; 0 for none; -errno */
static PyObject *Lane_serve(Lane *self, PyObject *unused)
{
    if (take_back(self))
        return NULL;
    for (int served = 0; served < BATCH; served++) {
        PyObject *buffer = PyObject_GetAttr(self->buffers, s_present);
        if (buffer == NULL || !PyByteArray_Check(buffer)) {
            Py_XDECREF(buffer);
            return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "the buffer is not a bytearray");
        }
        ssize_t size = receive(self, buffer, served);
        if (size <= 0) {
            int error = size < 0 ? errno : 0;
            Py_DECREF(buffer);
            return PyLong_FromLong(-error);
        }
        uint64_t began = now();
        self->gap = began - self->answered_at;
        int result = serve(self, PyByteArray_AS_STRING(buffer), (size_t)size, began);
        if (self->pipe.left)
            result = without_pipe(self, buffer, (size_t)size, result);
        Py_DECREF(buffer);
        if (result == FAILED)
            return NULL;
        if (result == SPECIAL)
            return PyLong_FromSsize_t(size);
    }
    return PyLong_FromLong(0);
}

/* answered() -> is there another request, and nothing else to do? */
static PyObject *Lane_answered(Lane *self, PyObject *unused)
{
    self->answered_at = now();
    return PyBool_FromLong(is_next_ours(self));
}

/* others() -> the descriptors that have been found ready meanwhile, and are somebody else's */
static PyObject *Lane_others(Lane *self, PyObject *unused)
{
    PyObject *all = PyList_New(self->heard_count);
    for (int at = 0; all != NULL && at < self->heard_count; at++) {
        PyObject *fd = PyLong_FromLong(self->heard[at]);
        if (fd == NULL)
            Py_CLEAR(all);
        else
            PyList_SET_ITEM(all, at, fd);
    }
    self->heard_count = 0;
    return all;
}

/* counts() -> [(opcode, requests, errors, nanoseconds in all, the longest)] since it was last asked */
static PyObject *Lane_counts(Lane *self, PyObject *unused)
{
    PyObject *all = PyList_New(0);
    for (int opcode = 0; all != NULL && opcode < OPCODES; opcode++) {
        Count *one = &self->counts[opcode];
        if (one->count == 0)
            continue;
        PyObject *row = Py_BuildValue("iKKKK", opcode, (unsigned long long)one->count,
                                      (unsigned long long)one->errors, (unsigned long long)one->total,
                                      (unsigned long long)one->longest);
        if (row == NULL || PyList_Append(all, row))
            Py_CLEAR(all);
        Py_XDECREF(row);
        memset(one, 0, sizeof *one);
    }
    return all;
}

/* What a lane refers to, in the order in which it is given. */
#define REFERENCES(with) \
    with(store) with(buffers) with(agents) with(viewed) with(readers) with(came_from) with(made_of) with(uids) with(gids) \
    with(adopt) with(forget) with(let_go) with(changes) with(contents) with(locks) \
    with(listings) with(open) with(copies)

static int Lane_init(Lane *self, PyObject *args, PyObject *kwargs)
{
#define NAME(it) #it,
#define PLACE(it) (PyObject **)&self->it,
    static char *names[] = {"fd", "poll", REFERENCES(NAME) "devices", "is_layered", "first_lower", "last_layer", "spins",
                             "pipe", NULL};
    PyObject **places[] = {REFERENCES(PLACE)}, *given[sizeof places / sizeof *places], *devices, *pipe;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "iiO!OO!O!O!OOOOOOOOO!OOOOO!piipO", names, &self->fd, &self->poll, &StoreType, &given[0], &given[1],
            &PyDict_Type, &given[2], &PyDict_Type, &given[3], &PyList_Type, &given[4], &given[5], &given[6], &given[7],
            &given[8], &given[9], &given[10], &given[11], &given[12], &ContentsType, &given[13], &given[14], &given[15],
            &given[16], &given[17], &PyList_Type, &devices, &self->is_layered, &self->first_lower, &self->last_layer,
            &self->spins, &pipe))
        return -1;
    for (size_t at = 0; at < sizeof places / sizeof *places; at++)
        Py_XSETREF(*places[at], Py_NewRef(given[at]));
    self->device_count = 0;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(devices) && at < MOST_LAYERS; at++) {
        unsigned long long device, addend;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(devices, at), "KK", &device, &addend))
            return -1;
        self->devices[self->device_count++] = (Device){device, addend};
    }
    int failed = init_pipe(&self->pipe, pipe) || init_changes(self, self->changes) || init_listings(self, self->listings);
    return failed ? -1 : 0;
}

static int Lane_traverse(Lane *self, visitproc visit, void *arg)
{
#define VISIT(it) Py_VISIT(self->it);
    REFERENCES(VISIT)
    return 0;
}

static int Lane_clear(Lane *self)
{
#define CLEAR(it) Py_CLEAR(self->it);
    REFERENCES(CLEAR)
    return 0;
}

static void Lane_dealloc(Lane *self)
{
    PyObject_GC_UnTrack(self);
    Lane_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Lane_methods[] = {
    {"serve", (PyCFunction)Lane_serve, METH_NOARGS, NULL},
    {"answered", (PyCFunction)Lane_answered, METH_NOARGS, NULL},
    {"others", (PyCFunction)Lane_others, METH_NOARGS, NULL},
    {"pack", (PyCFunction)Lane_pack, METH_VARARGS, NULL},
    {"counts", (PyCFunction)Lane_counts, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject LaneType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Lane",
    .tp_basicsize = sizeof(Lane),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Lane_init,
    .tp_dealloc = (destructor)Lane_dealloc,
    .tp_traverse = (traverseproc)Lane_traverse,
    .tp_clear = (inquiry)Lane_clear,
    .tp_methods = Lane_methods,
};
