/* System calls that are made for every name, with their results as the values that Python wants: what shiftfs/layer.py and
 * shiftfs/sys do by ctypes, without its cost.
 *
 * Owns nothing. Made without the interpreter's lock. Any thread.
 */
#include "native.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LISTED_ATTRIBUTES 65536   /* XATTR_LIST_MAX */
#define LISTED_NAMES 65536
#define LARGEST_HANDLE 128        /* MAX_HANDLE_SZ */
#define FIELDS 22                 /* of tree.Attributes */

static PyObject *failure(PyObject *name)
{
    if (name == NULL || PyBytes_GET_SIZE(name) == 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, name);
}

static PyObject *made_attributes(PyTypeObject *type, const struct statx *f, uint64_t device)
{
    uint32_t minor = f->stx_rdev_minor;
    long long fields[FIELDS] = {
        (long long)f->stx_ino, (long long)f->stx_size, (long long)f->stx_blocks, f->stx_atime.tv_sec, f->stx_mtime.tv_sec,
        f->stx_ctime.tv_sec, f->stx_atime.tv_nsec, f->stx_mtime.tv_nsec, f->stx_ctime.tv_nsec, f->stx_mode, f->stx_nlink,
        f->stx_uid, f->stx_gid, (minor & 0xFF) | f->stx_rdev_major << 8 | (minor & ~0xFFu) << 12, f->stx_blksize, 0,
        f->stx_btime.tv_sec, f->stx_btime.tv_nsec, (f->stx_mask & STATX_BTIME) != 0, (long long)f->stx_attributes,
        (long long)f->stx_attributes_mask, (long long)device,
    };
    PyObject *made = type->tp_alloc(type, FIELDS);
    for (int at = 0; made != NULL && at < FIELDS; at++) {
        int is_unsigned = at < 3 || at > 18, is_flag = at == 18;
        PyObject *value = is_flag ? PyBool_FromLong((long)fields[at])
            : is_unsigned ? PyLong_FromUnsignedLongLong((unsigned long long)fields[at]) : PyLong_FromLongLong(fields[at]);
        if (value == NULL)
            Py_CLEAR(made);
        else
            PyTuple_SET_ITEM(made, at, value);
    }
    return made;
}

/* look(directory, name, births, type) -> (key, attributes): Layer.find of what is told apart by its birth time; None for no
 * such name, False for what is not, which is left to Python. `births` says of which devices that is so. */
PyObject *native_look(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyBytes_Check(args[1]) || !PyDict_Check(args[2]) || !PyType_Check(args[3]))
        return PyErr_Format(PyExc_TypeError, "look(directory, name, births, type)");
    long directory = PyLong_AsLong(args[0]);
    if (directory == -1 && PyErr_Occurred())
        return NULL;
    struct statx f;
    const char *name = PyBytes_AS_STRING(args[1]);
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH, failed;
    Py_BEGIN_ALLOW_THREADS
    failed = statx((int)directory, name, flags, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &f);
    Py_END_ALLOW_THREADS
    if (failed && errno == ENOENT && PyBytes_GET_SIZE(args[1]) != 0)
        Py_RETURN_NONE;
    if (failed)
        return failure(args[1]);
    uint64_t device = statx_device(&f);
    PyObject *number = PyLong_FromUnsignedLongLong(device);
    PyObject *has_births = number == NULL ? NULL : PyDict_GetItemWithError(args[2], number);
    if (has_births != Py_True) {
        Py_XDECREF(number);
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_FALSE;
    }
    Key key;
    if (!key_of(&f, &key)) {
        Py_DECREF(number);
        Py_RETURN_FALSE;
    }
    PyObject *made = key_tuple(&key), *attributes = made_attributes((PyTypeObject *)args[3], &f, device);
    Py_DECREF(number);
    PyObject *both = made == NULL || attributes == NULL ? NULL : PyTuple_Pack(2, made, attributes);
    Py_XDECREF(made);
    Py_XDECREF(attributes);
    return both;
}

static int add_names(PyObject *listed, const char *buffer, long size)
{
    for (long at = 0; at < size;) {
        const struct record *one = (const void *)(buffer + at);
        at += one->length;
        if (is_dot(one->name))
            continue;
        PyObject *row = Py_BuildValue("yKi", one->name, (unsigned long long)one->number, one->kind);
        int failed = row == NULL || PyList_Append(listed, row);
        Py_XDECREF(row);
        if (failed)
            return -1;
    }
    return 0;
}

/* list_directory(fd) -> [(name, inode number, DT_ type)]: sys.files.list_directory */
PyObject *native_list_directory(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument), size;
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    char *buffer = PyMem_Malloc(LISTED_NAMES);
    PyObject *listed = buffer == NULL ? PyErr_NoMemory() : PyList_New(0);
    off_t begun = lseek((int)fd, 0, SEEK_SET);
    while (listed != NULL) {
        Py_BEGIN_ALLOW_THREADS
        size = begun < 0 ? -1 : syscall(SYS_getdents64, (int)fd, buffer, LISTED_NAMES);
        Py_END_ALLOW_THREADS
        if (size < 0)
            PyErr_SetFromErrno(PyExc_OSError);
        if (size == 0)
            break;
        if (size < 0 || add_names(listed, buffer, size))
            Py_CLEAR(listed);
    }
    PyMem_Free(buffer);
    return listed;
}

/* list_attributes(directory, name) -> names, each ended by a NUL: sys.xattrs.names; None before Linux 6.13 */
PyObject *native_list_attributes(PyObject *module, PyObject *args)
{
    int directory;
    PyObject *name;
    char room[4096], *buffer = room;
    if (!PyArg_ParseTuple(args, "iS", &directory, &name))
        return NULL;
    long size;
    Py_BEGIN_ALLOW_THREADS
    size = syscall(LISTXATTRAT, directory, PyBytes_AS_STRING(name), AT_SYMLINK_NOFOLLOW, buffer, sizeof room);
    Py_END_ALLOW_THREADS
    if (size < 0 && errno == ERANGE) {
        buffer = PyMem_Malloc(LISTED_ATTRIBUTES);
        if (buffer == NULL)
            return PyErr_NoMemory();
        Py_BEGIN_ALLOW_THREADS
        size = syscall(LISTXATTRAT, directory, PyBytes_AS_STRING(name), AT_SYMLINK_NOFOLLOW, buffer, LISTED_ATTRIBUTES);
        Py_END_ALLOW_THREADS
    }
    PyObject *names = size >= 0 ? PyBytes_FromStringAndSize(buffer, size)
        : errno == EOPNOTSUPP ? PyBytes_FromStringAndSize(NULL, 0)
        : errno == ENOSYS ? Py_NewRef(Py_None) : failure(name);
    if (buffer != room)
        PyMem_Free(buffer);
    return names;
}

/* encode_handle(directory, name, flags) -> struct file_handle of name_to_handle_at(2), its size and type included; None
 * where there is none */
PyObject *native_encode_handle(PyObject *module, PyObject *args)
{
    int directory, flags, mount, failed;
    const char *name;
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + LARGEST_HANDLE];
    } made;
    if (!PyArg_ParseTuple(args, "iyi", &directory, &name, &flags))
        return NULL;
    made.handle.handle_bytes = LARGEST_HANDLE;
    Py_BEGIN_ALLOW_THREADS
    failed = name_to_handle_at(directory, name, &made.handle, &mount, flags);
    Py_END_ALLOW_THREADS
    if (failed)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(made.room, (Py_ssize_t)(sizeof made.handle + made.handle.handle_bytes));
}
