/* A directory's listing, as ops/directories.py keeps it: rows (cookie, name, st_ino, DT_ type), sorted.
 *
 * Owns nothing. What may hide a name, or has to be looked at, is left to Python (overlay/merge.py). The directories are read
 * without the interpreter's lock. Any thread; READDIRPLUS of such rows, the loop thread.
 */
#include "native.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READ_AT_ONCE 65536
#define MOST_BITS 48              /* of inode numbers, where the others tell devices apart */
#define DOTS 2                    /* the cookies of `.` and `..` */
#define HASH_MASK (((uint64_t)1 << 62) - 1)

enum { NUMBERS_OF_NONE, NUMBERS_OF_FILES, NUMBERS_OF_ALL };

typedef struct {
    uint64_t cookie, number;
    PyObject *name;
    int kind;
} Row;

typedef struct {
    Row *rows;
    size_t count, room;
    PyObject *seen;             /* names, where there are several directories; else NULL */
    int is_layered;
} Listing;

static int add(Listing *listing, const struct record *one, uint64_t addend, int tells)
{
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
    if (listing->count == listing->room) {
        size_t room = listing->room ? listing->room * 2 : 64;
        Row *rows = PyMem_Realloc(listing->rows, room * sizeof(Row));
        if (rows == NULL) {
            Py_DECREF(name);
            PyErr_NoMemory();
            return FAILED;
        }
        listing->rows = rows;
        listing->room = room;
    }
    int is_told = tells == NUMBERS_OF_ALL || (tells == NUMBERS_OF_FILES && one->kind != DT_DIR);
    uint64_t cookie = ((uint64_t)PyObject_Hash(name) & HASH_MASK) + DOTS + 1;
    listing->rows[listing->count++] = (Row){cookie, is_told ? one->number + addend : 0, name, one->kind};
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

static PyObject *made_of(Listing *listing)
{
    if (listing->count)
        qsort(listing->rows, listing->count, sizeof(Row), compare);
    PyObject *rows = PyList_New((Py_ssize_t)listing->count);
    for (size_t at = 0; rows != NULL && at < listing->count; at++) {
        const Row *one = &listing->rows[at];
        PyObject *row = Py_BuildValue("KOKi", (unsigned long long)one->cookie, one->name,
                                      (unsigned long long)one->number, one->kind);
        if (row == NULL)
            Py_CLEAR(rows);
        else
            PyList_SET_ITEM(rows, (Py_ssize_t)at, row);
    }
    return rows;
}

/* rows([(descriptor, added to numbers, which numbers are told)], is_layered, noatime) -> the rows of the directories, top
 * first; None if that is for Python to find out. */
PyObject *native_rows(PyObject *module, PyObject *args)
{
    PyObject *parts, *rows = NULL;
    Listing listing = {0};
    int noatime, result = PLAIN;
    if (!PyArg_ParseTuple(args, "O!pi", &PyList_Type, &parts, &listing.is_layered, &noatime))
        return NULL;
    if (PyList_GET_SIZE(parts) > 1 && (listing.seen = PySet_New(NULL)) == NULL)
        return NULL;
    for (Py_ssize_t at = 0; result == PLAIN && at < PyList_GET_SIZE(parts); at++) {
        int held, tells;
        unsigned long long addend;
        result = PyArg_ParseTuple(PyList_GET_ITEM(parts, at), "iKi", &held, &addend, &tells)
            ? read_part(&listing, held, addend, tells, noatime) : FAILED;
    }
    if (result == PLAIN)
        rows = made_of(&listing);
    else if (result == SPECIAL)
        rows = Py_NewRef(Py_None);
    for (size_t at = 0; at < listing.count; at++)
        Py_DECREF(listing.rows[at].name);
    PyMem_Free(listing.rows);
    Py_XDECREF(listing.seen);
    return rows;
}

/* pack(directory, rows, start, room, other) -> bytes of READDIRPLUS, of as many of the rows (cookie, name, number, type)
 * from `start` on as there is room for; `other` packs what is special, or returns None for what has gone. */
PyObject *Lane_pack(Lane *self, PyObject *args)
{
    PyObject *rows, *other, *object;
    Py_ssize_t at, room;
    if (!PyArg_ParseTuple(args, "O!O!nnO", &InodeType, &object, &PyList_Type, &rows, &at, &room, &other))
        return NULL;
    Part parts[MOST_LAYERS];
    Inode *parent = (Inode *)object;
    int count = directory_parts(self, parent, parts);
    PyObject *packed = PyByteArray_FromStringAndSize(NULL, room);
    Py_ssize_t used = 0;
    for (; packed != NULL && at < PyList_GET_SIZE(rows); at++) {
        PyObject *row = PyList_GET_ITEM(rows, at), *name;
        unsigned long long cookie, number;
        unsigned kind;
        if (!PyArg_ParseTuple(row, "KSKI", &cookie, &name, &number, &kind))
            goto failed;
        Py_ssize_t length = PyBytes_GET_SIZE(name);
        Py_ssize_t size = (Py_ssize_t)FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + length);
        if (used + size > room)
            break;
        struct fuse_direntplus *out = (void *)(PyByteArray_AS_STRING(packed) + used);
        int result = SPECIAL;
        if (count && strlen(PyBytes_AS_STRING(name)) == (size_t)length)
            result = lookup_in(self, parent, parts, count, PyBytes_AS_STRING(name), &out->entry_out);
        if (result == FAILED)
            goto failed;
        if (result == PLAIN) {
            out->dirent = (struct fuse_dirent){out->entry_out.attr.ino, cookie, (uint32_t)length,
                                               out->entry_out.attr.mode >> 12};
            memcpy(out->dirent.name, PyBytes_AS_STRING(name), (size_t)length);
            memset(out->dirent.name + length, 0, (size_t)(size - (Py_ssize_t)FUSE_NAME_OFFSET_DIRENTPLUS - length));
            used += size;
        } else if (result == SPECIAL) {
            PyObject *bytes = PyObject_CallOneArg(other, row);
            if (bytes == NULL)
                goto failed;
            if (bytes != Py_None && PyBytes_Check(bytes) && PyBytes_GET_SIZE(bytes) == size) {
                memcpy(PyByteArray_AS_STRING(packed) + used, PyBytes_AS_STRING(bytes), (size_t)size);
                used += size;
            }
            Py_DECREF(bytes);
            release_parts(parts, count);  /* the directory may be made of others now, or not be followed any more */
            count = directory_parts(self, parent, parts);
        }
    }
    release_parts(parts, count);
    if (packed != NULL && PyByteArray_Resize(packed, used))
        Py_CLEAR(packed);
    return packed;
failed:
    release_parts(parts, count);
    Py_DECREF(packed);
    return NULL;
}

/* READDIR and READDIRPLUS behind the last name: the end of nearly every listing. Its rows are let go of. */
int serve_end(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began)
{
    const struct fuse_read_in *in = (const void *)body;
    if (length != sizeof *in || in->offset < DOTS)
        return SPECIAL;
    Inode **slot = find_nodeid(&lane->store->by_nodeid, header->nodeid);
    PyObject *rows = slot == NULL ? NULL : PyObject_GetItem(lane->listings, (PyObject *)*slot);
    int is_end = 0;
    if (rows != NULL && PyList_Check(rows)) {
        Py_ssize_t count = PyList_GET_SIZE(rows);
        PyObject *last = count ? PyList_GET_ITEM(rows, count - 1) : NULL;
        is_end = count == 0 || (PyTuple_Check(last) && PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(last, 0)) <= in->offset);
        is_end = is_end && !PyErr_Occurred() && PyObject_DelItem(lane->listings, (PyObject *)*slot) == 0;
    }
    PyErr_Clear();
    Py_XDECREF(rows);
    return is_end ? respond(lane, header, 0, NULL, 0, began) : SPECIAL;
}
