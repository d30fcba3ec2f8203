/* A directory's listing, as ops/directories.py keeps it: rows (cookie, name, st_ino, DT_ type), sorted.
 *
 * A Rows owns its names. What may hide a name, or has to be looked at, is left to Python (overlay/merge.py). The directories
 * are read without the interpreter's lock. Any thread.
 */
#include "listing.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READ_AT_ONCE 65536
#define MOST_BITS 48              /* of inode numbers, where the others tell devices apart */
#define HASH_MASK (((uint64_t)1 << 62) - 1)

/* One listing. */
typedef struct {
    PyObject_HEAD
    Row *rows;
    size_t count, room;
} Rows;

/* What it is made with. */
typedef struct {
    Rows *made;
    PyObject *seen;             /* names, where there are several directories; else NULL */
    int is_layered;
} Listing;

static int add(Listing *listing, const struct record *one, uint64_t addend, int tells)
{
    Rows *made = listing->made;
    if (listing->is_layered && (one->kind == DT_CHR || one->kind == DT_UNKNOWN || one->number >> MOST_BITS
                                || strncmp(one->name, ".wh.", 4) == 0))
        return SPECIAL;
    PyObject *name = PyBytes_FromString(one->name);
    if (name == NULL)
        return FAILED;
    if (listing->seen != NULL) {
        int is_seen = PySet_Contains(listing->seen, name);
        if (is_seen || PySet_Add(listing->seen, name)) {
            Py_DECREF(name);
            return is_seen == 1 ? PLAIN : FAILED;
        }
    }
    if (made->count == made->room) {
        size_t room = made->room ? made->room * 2 : 64;
        Row *rows = PyMem_Realloc(made->rows, room * sizeof(Row));
        if (rows == NULL) {
            Py_DECREF(name);
            PyErr_NoMemory();
            return FAILED;
        }
        made->rows = rows;
        made->room = room;
    }
    int is_told = tells == NUMBERS_OF_ALL || (tells == NUMBERS_OF_FILES && one->kind != DT_DIR);
    uint64_t cookie = ((uint64_t)PyObject_Hash(name) & HASH_MASK) + DOTS + 1;
    made->rows[made->count++] = (Row){cookie, is_told ? one->number + addend : 0, name, one->kind};
    return PLAIN;
}

static int read_part(Listing *listing, int held, uint64_t addend, int tells, int noatime)
{
    char path[40];
    int fd, flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOCTTY, result = PLAIN;
    snprintf(path, sizeof path, "/proc/self/fd/%d", held);
    Py_BEGIN_ALLOW_THREADS
    fd = open(path, flags | noatime);
    if (fd < 0 && errno == EPERM && noatime)
        fd = open(path, flags);
    Py_END_ALLOW_THREADS
    char *buffer = fd < 0 ? NULL : PyMem_Malloc(READ_AT_ONCE);
    if (buffer == NULL)
        result = SPECIAL;  /* Python says why */
    while (result == PLAIN) {
        long size;
        Py_BEGIN_ALLOW_THREADS
        size = syscall(SYS_getdents64, fd, buffer, READ_AT_ONCE);
        Py_END_ALLOW_THREADS
        if (size <= 0) {
            result = size < 0 ? SPECIAL : PLAIN;
            break;
        }
        for (long at = 0; at < size && result == PLAIN;) {
            const struct record *one = (const void *)(buffer + at);
            at += one->length;
            if (!is_dot(one->name))
                result = add(listing, one, addend, tells);
        }
    }
    PyMem_Free(buffer);
    if (fd >= 0)
        close(fd);
    return result;
}

static int compare(const void *a, const void *b)
{
    const Row *left = a, *right = b;
    if (left->cookie != right->cookie)
        return left->cookie < right->cookie ? -1 : 1;
    return strcmp(PyBytes_AS_STRING(left->name), PyBytes_AS_STRING(right->name));
}

static Rows *new_rows(void)
{
    return (Rows *)RowsType.tp_alloc(&RowsType, 0);
}

static PyObject *sorted_rows(Listing *listing, int result)
{
    Rows *made = listing->made;
    if (result == PLAIN && made->count)
        qsort(made->rows, made->count, sizeof(Row), compare);
    if (result != PLAIN)
        Py_CLEAR(made);
    Py_XDECREF(listing->seen);
    return (PyObject *)made;
}

/* rows([(descriptor, added to numbers, which numbers are told)], is_layered, noatime) -> the rows of the directories, top
 * first; None if that is for Python to find out. */
PyObject *native_rows(PyObject *module, PyObject *args)
{
    PyObject *parts;
    Listing listing = {0};
    int noatime, result = PLAIN;
    if (!PyArg_ParseTuple(args, "O!pi", &PyList_Type, &parts, &listing.is_layered, &noatime))
        return NULL;
    if ((listing.made = new_rows()) == NULL)
        return NULL;
    if (PyList_GET_SIZE(parts) > 1 && (listing.seen = PySet_New(NULL)) == NULL)
        result = FAILED;
    for (Py_ssize_t at = 0; result == PLAIN && at < PyList_GET_SIZE(parts); at++) {
        int held, tells;
        unsigned long long addend;
        result = PyArg_ParseTuple(PyList_GET_ITEM(parts, at), "iKi", &held, &addend, &tells)
            ? read_part(&listing, held, addend, tells, noatime) : FAILED;
    }
    PyObject *rows = sorted_rows(&listing, result);
    return result == SPECIAL ? Py_NewRef(Py_None) : rows;
}

PyObject *rows_of(int directory, uint64_t addend, int tells, int is_layered, int noatime)
{
    Listing listing = {new_rows(), NULL, is_layered};
    int result = listing.made == NULL ? FAILED : read_part(&listing, directory, addend, tells, noatime);
    return sorted_rows(&listing, result);
}

Py_ssize_t count_rows(PyObject *rows)
{
    return PyList_Check(rows) ? PyList_GET_SIZE(rows)
        : Py_IS_TYPE(rows, &RowsType) ? (Py_ssize_t)((Rows *)rows)->count : -1;
}

int row_at(PyObject *rows, Py_ssize_t at, Row *row)
{
    unsigned long long cookie, number;
    if (Py_IS_TYPE(rows, &RowsType)) {
        *row = ((Rows *)rows)->rows[at];
        return PLAIN;
    }
    if (!PyArg_ParseTuple(PyList_GET_ITEM(rows, at), "KSKi", &cookie, &row->name, &number, &row->kind))
        return FAILED;
    row->cookie = cookie;
    row->number = number;
    return PLAIN;
}

PyObject *row_tuple(const Row *row)
{
    return Py_BuildValue("KOKi", (unsigned long long)row->cookie, row->name, (unsigned long long)row->number, row->kind);
}

static Py_ssize_t Rows_length(PyObject *self)
{
    return count_rows(self);
}

static PyObject *Rows_item(PyObject *self, Py_ssize_t at)
{
    if (at < 0 || at >= count_rows(self)) {
        PyErr_SetString(PyExc_IndexError, "no such row");
        return NULL;
    }
    return row_tuple(&((Rows *)self)->rows[at]);
}

static void Rows_dealloc(Rows *self)
{
    for (size_t at = 0; at < self->count; at++)
        Py_DECREF(self->rows[at].name);
    PyMem_Free(self->rows);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PySequenceMethods Rows_sequence = {.sq_length = Rows_length, .sq_item = Rows_item};

PyTypeObject RowsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Rows",
    .tp_basicsize = sizeof(Rows),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)Rows_dealloc,
    .tp_as_sequence = &Rows_sequence,
};
