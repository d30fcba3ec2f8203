/* nodeid -> inode and real key -> inode: Store of shiftfs/store.py.
 *
 * Owns the inodes. Two open-addressed indexes of one set; the one by nodeid holds the references. Knows no rule of when
 * something is inserted or taken out. Loop thread.
 */
#include "native.h"

#include <stdlib.h>

int same_key(const Key *a, const Key *b)
{
    return memcmp(a, b, sizeof(Key)) == 0;
}

static size_t hash_nodeid(uint64_t nodeid)
{
    return (size_t)((nodeid * 0x9E3779B97F4A7C15u) >> 17);
}

/* By the inode number alone, so that those of one number are found together: most are another's nowhere. */
static size_t hash_number(uint64_t number)
{
    uint64_t h = number * 0xC2B2AE3D27D4EB4Fu;
    return (size_t)((h ^ h >> 32) * 0x9E3779B97F4A7C15u >> 17);
}

static size_t home_of(const Index *index, const Inode *inode, int by_key)
{
    return (by_key ? hash_number(inode->key.number) : hash_nodeid(inode->nodeid)) & index->mask;
}

Inode **find_nodeid(const Index *index, uint64_t nodeid)
{
    if (index->used == 0)
        return NULL;
    for (size_t at = hash_nodeid(nodeid) & index->mask; index->slots[at] != NULL; at = (at + 1) & index->mask)
        if (index->slots[at]->nodeid == nodeid)
            return &index->slots[at];
    return NULL;
}

Inode **find_key(const Index *index, const Key *key)
{
    if (index->used == 0)
        return NULL;
    for (size_t at = hash_number(key->number) & index->mask; index->slots[at] != NULL; at = (at + 1) & index->mask)
        if (same_key(&index->slots[at]->key, key))
            return &index->slots[at];
    return NULL;
}

int knows_number(const Index *index, uint64_t number)
{
    if (index->used == 0)
        return 0;
    for (size_t at = hash_number(number) & index->mask; index->slots[at] != NULL; at = (at + 1) & index->mask)
        if (index->slots[at]->key.number == number)
            return 1;
    return 0;
}

static void put(Index *index, Inode *inode, int by_key)
{
    size_t at = home_of(index, inode, by_key);
    while (index->slots[at] != NULL)
        at = (at + 1) & index->mask;
    index->slots[at] = inode;
    index->used++;
}

static int resize(Index *index, size_t size, int by_key)
{
    Inode **old = index->slots, **slots = PyMem_Calloc(size, sizeof(Inode *));
    if (slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    size_t count = old == NULL ? 0 : index->mask + 1;
    index->slots = slots;
    index->mask = size - 1;
    index->used = 0;
    for (size_t at = 0; at < count; at++)
        if (old[at] != NULL)
            put(index, old[at], by_key);
    PyMem_Free(old);
    return 0;
}

static int make_room(Index *index, int by_key)
{
    size_t size = index->slots == NULL ? 0 : index->mask + 1;
    if ((index->used + 1) * 3 <= size * 2)
        return 0;
    return resize(index, size ? size * 2 : 64, by_key);
}

/* Knuth's algorithm R: nothing that was found stays unreachable, and no mark is left behind. */
static void take_out(Index *index, Inode **slot, int by_key)
{
    size_t hole = slot - index->slots;
    for (size_t at = (hole + 1) & index->mask; index->slots[at] != NULL; at = (at + 1) & index->mask) {
        size_t home = home_of(index, index->slots[at], by_key);
        if (((at - home) & index->mask) >= ((at - hole) & index->mask)) {
            index->slots[hole] = index->slots[at];
            hole = at;
        }
    }
    index->slots[hole] = NULL;
    index->used--;
    size_t size = index->mask + 1;
    if (size > 1024 && index->used * 8 < size && resize(index, size / 4, by_key))
        PyErr_Clear();  /* it goes on as large as it is */
}

void unkey(Store *store, Inode *inode)
{
    Inode **slot = find_key(&store->by_key, &inode->key);
    if (slot != NULL && *slot == inode)
        take_out(&store->by_key, slot, 1);
}

int insert_new(Store *store, Inode *inode)
{
    if (make_room(&store->by_nodeid, 0) || make_room(&store->by_key, 1))
        return -1;
    put(&store->by_key, inode, 1);
    Py_INCREF(inode);
    put(&store->by_nodeid, inode, 0);
    return 0;
}

int insert(Store *store, Inode *inode)
{
    if (find_nodeid(&store->by_nodeid, inode->nodeid) != NULL) {
        PyErr_SetString(PyExc_SystemError, "a nodeid that is in use");
        return -1;
    }
    Inode **slot = find_key(&store->by_key, &inode->key);
    if (slot == NULL)
        return insert_new(store, inode);
    if (make_room(&store->by_nodeid, 0))
        return -1;
    *slot = inode;  /* as a dictionary: the newest has the key */
    Py_INCREF(inode);
    put(&store->by_nodeid, inode, 0);
    return 0;
}

Inode *take(Store *store, uint64_t nodeid)
{
    Inode **slot = find_nodeid(&store->by_nodeid, nodeid);
    if (slot == NULL)
        return NULL;
    Inode *inode = *slot;
    unkey(store, inode);
    take_out(&store->by_nodeid, slot, 0);
    return inode;
}

static PyObject *Store_get(Store *self, PyObject *nodeid)
{
    Inode **slot = find_nodeid(&self->by_nodeid, PyLong_AsUnsignedLongLong(nodeid));
    if (slot != NULL)
        return Py_NewRef(*slot);
    if (!PyErr_Occurred()) {
        errno = ESTALE;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return NULL;
}

static PyObject *Store_find(Store *self, PyObject *nodeid)
{
    Inode **slot = find_nodeid(&self->by_nodeid, PyLong_AsUnsignedLongLong(nodeid));
    return PyErr_Occurred() ? NULL : or_none(slot == NULL ? NULL : (PyObject *)*slot);
}

static PyObject *Store_known(Store *self, PyObject *from)
{
    Key key;
    if (read_key(from, &key))
        return NULL;
    Inode **slot = find_key(&self->by_key, &key);
    return or_none(slot == NULL ? NULL : (PyObject *)*slot);
}

static PyObject *Store_insert(Store *self, PyObject *inode)
{
    if (!PyObject_TypeCheck(inode, &InodeType))
        return PyErr_Format(PyExc_TypeError, "an Inode, not %R", inode);
    if (insert(self, (Inode *)inode))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Store_take(Store *self, PyObject *nodeid)
{
    uint64_t wanted = PyLong_AsUnsignedLongLong(nodeid);
    if (PyErr_Occurred())
        return NULL;
    Inode *inode = take(self, wanted);
    if (inode == NULL)
        Py_RETURN_NONE;
    return (PyObject *)inode;
}

static PyObject *Store_unkey(Store *self, PyObject *inode)
{
    if (!PyObject_TypeCheck(inode, &InodeType))
        return PyErr_Format(PyExc_TypeError, "an Inode, not %R", inode);
    unkey(self, (Inode *)inode);
    Py_RETURN_NONE;
}

static PyObject *Store_key_again(Store *self, PyObject *object)
{
    if (!PyObject_TypeCheck(object, &InodeType))
        return PyErr_Format(PyExc_TypeError, "an Inode, not %R", object);
    Inode *inode = (Inode *)object;
    Inode **slot = find_nodeid(&self->by_nodeid, inode->nodeid);
    if (slot != NULL && *slot == inode && find_key(&self->by_key, &inode->key) == NULL) {
        if (make_room(&self->by_key, 1))
            return NULL;
        put(&self->by_key, inode, 1);
    }
    Py_RETURN_NONE;
}

static PyObject *Store_new_nodeid(Store *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(self->next++);
}

static int compare_nodeids(const void *a, const void *b)
{
    uint64_t left = (*(Inode *const *)a)->nodeid, right = (*(Inode *const *)b)->nodeid;
    return left < right ? -1 : left > right;
}

/* all() -> the inodes, in the order of their nodeids: as a rule those above were known before those below */
static PyObject *Store_all(Store *self, PyObject *unused)
{
    size_t size = self->by_nodeid.slots == NULL ? 0 : self->by_nodeid.mask + 1, count = 0;
    Inode **sorted = PyMem_Calloc(self->by_nodeid.used + 1, sizeof(Inode *));
    if (sorted == NULL)
        return PyErr_NoMemory();
    for (size_t at = 0; at < size; at++)
        if (self->by_nodeid.slots[at] != NULL)
            sorted[count++] = (Inode *)Py_NewRef(self->by_nodeid.slots[at]);
    qsort(sorted, count, sizeof *sorted, compare_nodeids);
    PyObject *all = PyList_New((Py_ssize_t)count);
    for (size_t at = 0; at < count; at++)
        if (all == NULL)
            Py_DECREF(sorted[at]);
        else
            PyList_SET_ITEM(all, (Py_ssize_t)at, (PyObject *)sorted[at]);
    PyMem_Free(sorted);
    return all;
}

static int Store_clear(Store *self)
{
    Inode **slots = self->by_nodeid.slots;
    size_t size = slots == NULL ? 0 : self->by_nodeid.mask + 1;
    PyMem_Free(self->by_key.slots);
    memset(&self->by_key, 0, sizeof(Index));
    memset(&self->by_nodeid, 0, sizeof(Index));
    for (size_t at = 0; at < size; at++)
        Py_XDECREF(slots[at]);
    PyMem_Free(slots);
    return 0;
}

static PyObject *Store_forget_all(Store *self, PyObject *unused)
{
    Store_clear(self);
    Py_RETURN_NONE;
}

static int Store_traverse(Store *self, visitproc visit, void *arg)
{
    size_t size = self->by_nodeid.slots == NULL ? 0 : self->by_nodeid.mask + 1;
    for (size_t at = 0; at < size; at++)
        Py_VISIT(self->by_nodeid.slots[at]);
    return 0;
}

static void Store_dealloc(Store *self)
{
    PyObject_GC_UnTrack(self);
    Store_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t Store_length(Store *self)
{
    return (Py_ssize_t)self->by_nodeid.used;
}

/* sys.getsizeof: the table itself, without the inodes */
static PyObject *Store_size(Store *self, PyObject *unused)
{
    size_t slots = 0;
    slots += self->by_nodeid.slots == NULL ? 0 : self->by_nodeid.mask + 1;
    slots += self->by_key.slots == NULL ? 0 : self->by_key.mask + 1;
    return PyLong_FromSize_t((size_t)Py_TYPE(self)->tp_basicsize + slots * sizeof(Inode *));
}

static PyMethodDef Store_methods[] = {
    {"get", (PyCFunction)Store_get, METH_O, NULL},
    {"find", (PyCFunction)Store_find, METH_O, NULL},
    {"known", (PyCFunction)Store_known, METH_O, NULL},
    {"insert", (PyCFunction)Store_insert, METH_O, NULL},
    {"take", (PyCFunction)Store_take, METH_O, NULL},
    {"unkey", (PyCFunction)Store_unkey, METH_O, NULL},
    {"key_again", (PyCFunction)Store_key_again, METH_O, NULL},
    {"new_nodeid", (PyCFunction)Store_new_nodeid, METH_NOARGS, NULL},
    {"all", (PyCFunction)Store_all, METH_NOARGS, NULL},
    {"__sizeof__", (PyCFunction)Store_size, METH_NOARGS, NULL},
    {"forget_all", (PyCFunction)Store_forget_all, METH_NOARGS, NULL},
    {NULL},
};

static PyObject *Store_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Store *store = (Store *)type->tp_alloc(type, 0);
    if (store != NULL)
        store->next = FUSE_ROOT_ID + 1;
    return (PyObject *)store;
}

static PySequenceMethods Store_as_sequence = {.sq_length = (lenfunc)Store_length};

PyTypeObject StoreType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Store",
    .tp_basicsize = sizeof(Store),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .tp_new = Store_new,
    .tp_dealloc = (destructor)Store_dealloc,
    .tp_traverse = (traverseproc)Store_traverse,
    .tp_clear = (inquiry)Store_clear,
    .tp_as_sequence = &Store_as_sequence,
    .tp_methods = Store_methods,
};

