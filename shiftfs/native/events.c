/* What a fanotify group tells, less what concerns nobody here: Reader of shiftfs/sys/fanotify.py.
 *
 * Owns what has been read and not been asked for. Leaves out what surely says nothing: changes of this process, and of
 * inodes that are not known; what the rest means is found out in Python (fanotify.events). Loop thread.
 */
#include "native.h"

#include <sys/fanotify.h>
#include <unistd.h>

#define AT_ONCE 4096              /* bytes of events, some forty */
#define READS 8                   /* that concern nobody, before something else has its turn */
#define VERSION 3                 /* FANOTIFY_METADATA_VERSION, of the layout below */
#define TO_TOKEN 4
#define TO_HANDLE 20
#define FILESYSTEMS 16            /* whose handles tell inode numbers; of further ones nothing is left out for that */

/* struct fanotify_event_info_fid with the handle in it; a record's name follows the handle. */
struct information {
    uint8_t kind, pad;
    uint16_t length;
    uint32_t fsid[2];
    uint32_t handle_size;
    int32_t handle_type;
};

typedef struct {
    PyObject_HEAD
    int fd, links;
    PyObject *known;
    PyObject *store;            /* Store, or NULL */
    uint32_t numbered[FILESYSTEMS][2];
    int numbered_count;
    ssize_t length;
    _Alignas(8) char data[AT_ONCE];
} Reader;

/* Is the inode that a record names known? -1 with an exception set. */
static int is_known(const Reader *reader, const char *record, const struct information *about)
{
    PyObject *token = PyBytes_FromStringAndSize(record + TO_TOKEN, TO_HANDLE - TO_TOKEN + (Py_ssize_t)about->handle_size);
    int found = token == NULL ? -1 : PySet_Contains(reader->known, token);
    Py_XDECREF(token);
    return found;
}

/* The inode number in a handle, as most filesystems have it there: those that encode it as fs/libfs.c and the like, tmpfs
 * (mm/shmem.c), xfs (fs/xfs/xfs_export.c) and btrfs (fs/btrfs/export.c). */
static int number_in(const char *handle, uint32_t size, int32_t type, uint64_t *number)
{
    uint32_t words[5] = {0};
    if (size > sizeof words)
        return 0;
    memcpy(words, handle, size);
    if (type == 1 && size == 8)
        *number = words[0];
    else if (type == 1 && size == 12)
        *number = words[1] | (uint64_t)words[2] << 32;
    else if ((type == 0x81 && size == 12) || (type == 0x4D && size == 20))
        *number = words[0] | (uint64_t)words[1] << 32;
    else
        return 0;
    return 1;
}

static int is_numbered(const Reader *reader, const uint32_t *fsid)
{
    for (int at = 0; at < reader->numbered_count; at++)
        if (memcmp(reader->numbered[at], fsid, sizeof reader->numbered[at]) == 0)
            return 1;
    return 0;
}

/* An inode has got another count of links, or other attributes, and nobody knows its directory. Is it surely none of
 * those in the table? Each file that is removed anywhere on the filesystem tells this. */
static int is_strange(const Reader *reader, const char *record, ssize_t room)
{
    struct information about;
    uint64_t number;
    if (reader->store == NULL || room < TO_HANDLE)
        return 0;
    memcpy(&about, record, sizeof about);
    return about.handle_size <= (uint32_t)(room - TO_HANDLE) && is_numbered(reader, about.fsid)
        && number_in(record + TO_HANDLE, about.handle_size, about.handle_type, &number)
        && !knows_number(&((Store *)reader->store)->by_key, number);
}

/* May one event concern somebody? -1 with an exception set. What is not understood does. */
static int concerns(const Reader *reader, const char *event, const struct fanotify_event_metadata *head, pid_t me)
{
    if (head->pid == me)
        return 0;
    const char *at = event + head->metadata_len, *end = event + head->event_len;
    if (at >= end)
        return 1;
    if (reader->links && head->mask & FAN_ATTRIB && event[head->metadata_len] == FAN_EVENT_INFO_TYPE_FID
        && !is_strange(reader, at, end - at))
        return 1;
    while (end - at >= TO_HANDLE) {
        struct information about;
        memcpy(&about, at, sizeof about);
        if (about.length < TO_HANDLE || about.length > end - at || about.handle_size > (uint32_t)about.length - TO_HANDLE)
            return 1;
        int found = is_known(reader, at, &about);
        if (found)
            return found;
        at += about.length;
    }
    return at != end;
}

/* May anything that has been read concern somebody? */
static int has_news(const Reader *reader)
{
    pid_t me = getpid();
    for (ssize_t at = 0; at < reader->length;) {
        struct fanotify_event_metadata head;
        if (reader->length - at < (ssize_t)sizeof head)
            return 1;
        memcpy(&head, reader->data + at, sizeof head);
        if (head.vers != VERSION || head.metadata_len < sizeof head || head.event_len < head.metadata_len
            || head.event_len > reader->length - at)
            return 1;
        int found = concerns(reader, reader->data + at, &head, me);
        if (found)
            return found;
        at += head.event_len;
    }
    return 0;
}

int skip_events(PyObject *object)
{
    Reader *reader = (Reader *)object;
    for (int reads = 0; reader->length == 0 && reads < READS; reads++) {
        ssize_t size = read(reader->fd, reader->data, AT_ONCE);
        if (size <= 0)
            return size < 0 && errno != EAGAIN && errno != EINTR;
        reader->length = size;
        int found = has_news(reader);
        if (found < 0)
            PyErr_Clear();  /* whoever asks for them will see */
        if (found)
            break;
        reader->length = 0;
    }
    return reader->length != 0;
}

/* read() -> events, or nothing; OSError where the group has failed */
static PyObject *Reader_read(Reader *self, PyObject *unused)
{
    if (skip_events((PyObject *)self) && self->length == 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *data = PyBytes_FromStringAndSize(self->data, self->length);
    if (data != NULL)
        self->length = 0;
    return data;
}

/* numbers(token, inode number): if the handle in the token tells it, those of the same filesystem are taken to. */
static PyObject *Reader_numbers(Reader *self, PyObject *args)
{
    const char *token;
    Py_ssize_t length;
    unsigned long long expected;
    uint64_t number;
    struct information about;
    if (!PyArg_ParseTuple(args, "y#K", &token, &length, &expected))
        return NULL;
    Py_ssize_t size = length - (TO_HANDLE - TO_TOKEN);
    if (size >= 0) {
        memcpy((char *)&about + TO_TOKEN, token, TO_HANDLE - TO_TOKEN);
        if (about.handle_size == (size_t)size && self->numbered_count < FILESYSTEMS && !is_numbered(self, about.fsid)
            && number_in(token + TO_HANDLE - TO_TOKEN, about.handle_size, about.handle_type, &number)
            && number == expected)
            memcpy(self->numbered[self->numbered_count++], about.fsid, sizeof about.fsid);
    }
    Py_RETURN_NONE;
}

static PyObject *Reader_holds(Reader *self, void *closure)
{
    return PyBool_FromLong(self->length != 0);
}

static int Reader_init(Reader *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "known", "links", "store", NULL};
    PyObject *known, *store = NULL;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "iO!p|O", names, &self->fd, &PySet_Type, &known, &self->links, &store))
        return -1;
    Py_XSETREF(self->known, Py_NewRef(known));
    int has_store = store != NULL && PyObject_TypeCheck(store, &StoreType);
    Py_XSETREF(self->store, has_store ? Py_NewRef(store) : NULL);
    self->length = 0;
    return 0;
}

static void Reader_dealloc(Reader *self)
{
    Py_XDECREF(self->known);
    Py_XDECREF(self->store);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

int reader_fd(PyObject *object)
{
    return Py_IS_TYPE(object, &ReaderType) ? ((Reader *)object)->fd : -1;
}

static PyMethodDef Reader_methods[] = {
    {"read", (PyCFunction)Reader_read, METH_NOARGS, NULL},
    {"numbers", (PyCFunction)Reader_numbers, METH_VARARGS, NULL},
    {NULL},
};

static PyGetSetDef Reader_values[] = {
    {"holds", (getter)Reader_holds, NULL, NULL, NULL},
    {NULL},
};

PyTypeObject ReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Reader",
    .tp_basicsize = sizeof(Reader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Reader_init,
    .tp_dealloc = (destructor)Reader_dealloc,
    .tp_methods = Reader_methods,
    .tp_getset = Reader_values,
};
