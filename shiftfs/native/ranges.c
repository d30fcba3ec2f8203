/* Who has locked which bytes of a file: FileLocks, the twin of shiftfs/locks/ranges.py.
 *
 * Owns the rows of each. Never touches a file, and never makes anybody wait. Loop thread.
 */
#include "ranges.h"

#include <fcntl.h>
#include <stdlib.h>

static int reserve(FileLocks *locks, size_t more)
{
    if (locks->count + more <= locks->room)
        return 1;
    size_t room = 2 * (locks->count + more);
    Row *rows = realloc(locks->rows, room * sizeof *rows);
    if (rows == NULL)
        return 0;
    locks->rows = rows;
    locks->room = room;
    return 1;
}

static int meets(const Row *row, uint64_t start, uint64_t end)
{
    return row->start <= end && row->end >= start;
}

static int excludes(int held, int asked)
{
    return asked != F_UNLCK && (held == F_WRLCK || asked == F_WRLCK);
}

int set_row(FileLocks *locks, Row asked)
{
    if (!reserve(locks, 2))
        return 0;
    size_t kept = 0, count = locks->count;
    Row behind;     /* the rest of a row that reached beyond both ends */
    int has_behind = 0;
    uint64_t start = asked.start, end = asked.end;
    for (size_t at = 0; at < count; at++) {
        Row row = locks->rows[at];
        int is_same = row.kind == asked.kind;
        uint64_t before = is_same && start > 0 ? start - 1 : start, after = is_same ? end + 1 : end;
        if (row.owner != asked.owner || !meets(&row, before, after)) {
            locks->rows[kept++] = row;
            continue;
        }
        if (is_same) {
            asked.start = row.start < asked.start ? row.start : asked.start;
            asked.end = row.end > asked.end ? row.end : asked.end;
            continue;
        }
        Row left = row;
        if (row.start < start) {
            left.end = start - 1;
            locks->rows[kept++] = left;
        }
        if (row.end > end) {
            row.start = end + 1;
            if (left.start < start) {
                behind = row;
                has_behind = 1;
            } else
                locks->rows[kept++] = row;
        }
    }
    if (has_behind)
        locks->rows[kept++] = behind;
    if (asked.kind != F_UNLCK)
        locks->rows[kept++] = asked;
    locks->count = kept;
    return 1;
}

const Row *find_conflict(const FileLocks *locks, uint64_t owner, uint64_t start, uint64_t end, int kind)
{
    const Row *nearest = NULL;
    for (const Row *row = locks->rows; row < locks->rows + locks->count; row++)
        if (row->owner != owner && excludes(row->kind, kind) && meets(row, start, end)
            && (nearest == NULL || row->start < nearest->start
                || (row->start == nearest->start && row->owner < nearest->owner)))
            nearest = row;
    return nearest;
}

/* From here on there is one more holder of a kind, or one fewer. */
typedef struct {
    uint64_t offset;
    int kind, change;
} Edge;

static int by_offset(const void *a, const void *b)
{
    const Edge *one = a, *other = b;
    return one->offset < other->offset ? -1 : one->offset > other->offset;
}

ssize_t find_needed(const FileLocks *locks, uint64_t start, uint64_t end, Span **spans)
{
    size_t count = 0, held = 0;
    for (const Row *row = locks->rows; row < locks->rows + locks->count; row++)
        held += meets(row, start, end);
    Edge *edges = malloc((2 * held + 1) * sizeof *edges), *edge = edges;
    Span *found = malloc((2 * held + 1) * sizeof *found);
    if (edges == NULL || found == NULL) {
        free(edges);
        free(found);
        return -1;
    }
    for (const Row *row = locks->rows; row < locks->rows + locks->count; row++)
        if (meets(row, start, end)) {
            *edge++ = (Edge){row->start > start ? row->start : start, row->kind, 1};
            *edge++ = (Edge){(row->end < end ? row->end : end) + 1, row->kind, -1};
        }
    qsort(edges, 2 * held, sizeof *edges, by_offset);
    edges[2 * held] = (Edge){end + 1, F_UNLCK, 0};
    int holders[] = {0, 0, 0};      /* by kind */
    for (edge = edges; edge <= edges + 2 * held; edge++) {
        if (edge->offset > start) {
            int kind = holders[F_WRLCK] ? F_WRLCK : holders[F_RDLCK] ? F_RDLCK : F_UNLCK;
            if (count && found[count - 1].kind == kind)
                found[count - 1].end = edge->offset - 1;
            else
                found[count++] = (Span){start, edge->offset - 1, kind};
            start = edge->offset;
        }
        holders[edge->kind] += edge->change;
    }
    free(edges);
    *spans = found;
    return (ssize_t)count;
}

static int FileLocks_init(FileLocks *self, PyObject *args, PyObject *kwargs)
{
    PyObject *held;
    if (!PyArg_ParseTuple(args, "O", &held))
        return -1;
    Py_XSETREF(self->held, Py_NewRef(held));
    return 0;
}

static void FileLocks_dealloc(FileLocks *self)
{
    Py_XDECREF(self->held);
    free(self->rows);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t FileLocks_length(FileLocks *self)
{
    return (Py_ssize_t)self->count;
}

PyObject *tell_row(FileLocks *self, const Row *row)
{
    return PyObject_CallFunction(self->held, "KKKiIK", (unsigned long long)row->owner, (unsigned long long)row->start,
                                 (unsigned long long)row->end, row->kind, row->pid, (unsigned long long)row->fh);
}

static int by_start(const void *a, const void *b)
{
    const Row *one = a, *other = b;
    if (one->start != other->start)
        return one->start < other->start ? -1 : 1;
    return one->owner < other->owner ? -1 : one->owner > other->owner;
}

static PyObject *FileLocks_iter(FileLocks *self)
{
    qsort(self->rows, self->count, sizeof *self->rows, by_start);
    PyObject *all = PyList_New(0), *iterator;
    for (size_t at = 0; all != NULL && at < self->count; at++) {
        PyObject *one = tell_row(self, &self->rows[at]);
        if (one == NULL || PyList_Append(all, one))
            Py_CLEAR(all);
        Py_XDECREF(one);
    }
    iterator = all == NULL ? NULL : PyObject_GetIter(all);
    Py_XDECREF(all);
    return iterator;
}

static PyObject *FileLocks_conflict(FileLocks *self, PyObject *args)
{
    unsigned long long owner, start, end;
    int kind;
    if (!PyArg_ParseTuple(args, "KKKi", &owner, &start, &end, &kind))
        return NULL;
    const Row *found = find_conflict(self, owner, start, end, kind);
    return found == NULL ? Py_NewRef(Py_None) : tell_row(self, found);
}

static PyObject *FileLocks_set(FileLocks *self, PyObject *args)
{
    unsigned long long owner, start, end, fh;
    unsigned pid;
    int kind;
    if (!PyArg_ParseTuple(args, "KKKiIK", &owner, &start, &end, &kind, &pid, &fh))
        return NULL;
    if (!set_row(self, (Row){owner, start, end, fh, pid, kind}))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* Those of an owner, or all that were last locked through a handle, are gone: [(first, last)], ascending. */
static PyObject *drop(FileLocks *self, PyObject *argument, int is_handle)
{
    uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    qsort(self->rows, self->count, sizeof *self->rows, by_start);
    PyObject *gone = PyList_New(0);
    size_t kept = 0;
    for (size_t at = 0; gone != NULL && at < self->count; at++) {
        Row *row = &self->rows[at];
        if ((is_handle ? row->fh : row->owner) != number) {
            self->rows[kept++] = *row;
            continue;
        }
        PyObject *range = Py_BuildValue("KK", (unsigned long long)row->start, (unsigned long long)row->end);
        if (range == NULL || PyList_Append(gone, range))
            Py_CLEAR(gone);
        Py_XDECREF(range);
    }
    if (gone != NULL)
        self->count = kept;
    if (gone != NULL && PyList_Sort(gone))
        Py_CLEAR(gone);
    return gone;
}

static PyObject *FileLocks_drop(FileLocks *self, PyObject *owner)
{
    return drop(self, owner, 0);
}

static PyObject *FileLocks_drop_handle(FileLocks *self, PyObject *fh)
{
    return drop(self, fh, 1);
}

static PyObject *FileLocks_needed(FileLocks *self, PyObject *args)
{
    unsigned long long start, end;
    if (!PyArg_ParseTuple(args, "KK", &start, &end))
        return NULL;
    Span *spans;
    ssize_t count = find_needed(self, start, end, &spans);
    if (count < 0)
        return PyErr_NoMemory();
    PyObject *all = PyList_New(count);
    for (ssize_t at = 0; all != NULL && at < count; at++) {
        PyObject *span = Py_BuildValue("KKi", (unsigned long long)spans[at].start, (unsigned long long)spans[at].end,
                                       spans[at].kind);
        if (span == NULL)
            Py_CLEAR(all);
        else
            PyList_SET_ITEM(all, at, span);
    }
    free(spans);
    return all;
}

static PyMethodDef FileLocks_methods[] = {
    {"conflict", (PyCFunction)FileLocks_conflict, METH_VARARGS, NULL},
    {"set", (PyCFunction)FileLocks_set, METH_VARARGS, NULL},
    {"drop", (PyCFunction)FileLocks_drop, METH_O, NULL},
    {"drop_handle", (PyCFunction)FileLocks_drop_handle, METH_O, NULL},
    {"needed", (PyCFunction)FileLocks_needed, METH_VARARGS, NULL},
    {NULL},
};

static PySequenceMethods FileLocks_sequence = {.sq_length = (lenfunc)FileLocks_length};

PyTypeObject FileLocksType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.FileLocks",
    .tp_basicsize = sizeof(FileLocks),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)FileLocks_init,
    .tp_dealloc = (destructor)FileLocks_dealloc,
    .tp_iter = (getiterfunc)FileLocks_iter,
    .tp_as_sequence = &FileLocks_sequence,
    .tp_methods = FileLocks_methods,
};
