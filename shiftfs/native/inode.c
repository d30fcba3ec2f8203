/* What the kernel knows of one inode: Inode of shiftfs/store.py, in a quarter of the memory.
 *
 * Owns its own numbers. What a tree knows of the inode (`entry`) is made when somebody asks for it; most inodes are never
 * more than looked up and forgotten. Loop thread.
 */
#include "native.h"

#include <sys/stat.h>

#define MOST_LOOKUPS (((long long)1 << 62) - 1)

int read_key(PyObject *from, Key *key)
{
    if (!PyTuple_Check(from) || PyTuple_GET_SIZE(from) != 4) {
        PyErr_SetString(PyExc_TypeError, "a real key is four numbers");
        return -1;
    }
    unsigned long long device = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(from, 0));
    unsigned long long kind = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(from, 3));
    key->number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(from, 1));
    key->born = PyLong_AsLongLong(PyTuple_GET_ITEM(from, 2));
    if (!PyErr_Occurred() && (device > UINT32_MAX || kind > UINT32_MAX))
        PyErr_SetString(PyExc_OverflowError, "no device or type has so large a number");
    key->device = (uint32_t)device;
    key->kind = (uint32_t)kind;
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *key_tuple(const Key *key)
{
    return Py_BuildValue("KKLK", (unsigned long long)key->device, (unsigned long long)key->number,
                         (long long)key->born, (unsigned long long)key->kind);
}

Inode *new_inode(PyTypeObject *type, uint64_t nodeid, const Key *key)
{
    Inode *inode = (Inode *)type->tp_alloc(type, 0);
    if (inode != NULL) {
        inode->nodeid = nodeid;
        inode->key = *key;
    }
    return inode;
}

static PyObject *Inode_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned long long nodeid;
    PyObject *from, *entry;
    Key key;
    if (!PyArg_ParseTuple(args, "KOO", &nodeid, &from, &entry) || read_key(from, &key))
        return NULL;
    Inode *inode = new_inode(type, nodeid, &key);
    if (inode != NULL) {
        inode->entry = Py_NewRef(entry);
        if ((inode->name = PyBytes_FromStringAndSize(NULL, 0)) == NULL)
            Py_CLEAR(inode);
    }
    return (PyObject *)inode;
}

static int Inode_traverse(Inode *self, visitproc visit, void *arg)
{
    Py_VISIT(self->entry);
    Py_VISIT(self->children);   /* or its place */
    Py_VISIT(self->parent);
    Py_VISIT(self->watch);
    return 0;
}

static int Inode_clear(Inode *self)
{
    Py_CLEAR(self->children);   /* or its place */
    Py_CLEAR(self->entry);
    Py_CLEAR(self->parent);
    Py_CLEAR(self->name);
    Py_CLEAR(self->watch);
    return 0;
}

static void Inode_dealloc(Inode *self)
{
    PyObject_GC_UnTrack(self);
    Inode_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* The tree makes its entry of where the inode was found. */
int make_entry(Inode *self)
{
    if (self->entry != NULL)
        return 0;
    if (place_of(self) == NULL || self->parent == NULL) {
        PyErr_SetString(PyExc_SystemError, "an inode without an entry");
        return -1;
    }
    PyObject *key = key_tuple(&self->key);
    PyObject *above = ((Inode *)self->parent)->entry;
    PyObject *made = key == NULL || above == NULL
        ? NULL : PyObject_CallMethodObjArgs(self->place, s_entry_of, above, self->name, key, NULL);
    Py_XDECREF(key);
    if (made == NULL)
        return -1;
    PyObject *place = self->place;
    self->entry = made;
    self->children = NULL;      /* where the place was */
    Py_DECREF(place);
    return 0;
}

static PyObject *Inode_get_entry(Inode *self, void *closure)
{
    return make_entry(self) ? NULL : Py_NewRef(self->entry);
}

static int Inode_set_entry(Inode *self, PyObject *value, void *closure)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "an inode keeps its entry");
        return -1;
    }
    if (self->entry == NULL)
        Py_CLEAR(self->place);
    Py_XSETREF(self->entry, Py_NewRef(value));
    return 0;
}

PyObject *or_none(PyObject *value)
{
    return Py_NewRef(value == NULL ? Py_None : value);
}

static PyObject *Inode_get_parent(Inode *self, void *closure)
{
    return or_none(self->parent);
}

static int Inode_set_parent(Inode *self, PyObject *value, void *closure)
{
    if (value != NULL && value != Py_None && !PyObject_TypeCheck(value, &InodeType)) {
        PyErr_SetString(PyExc_TypeError, "parent is an Inode or None");
        return -1;
    }
    if (place_of(self) != NULL && make_entry(self))  /* where it was found is not where it is any more */
        return -1;
    Py_XSETREF(self->parent, value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static PyObject *Inode_get_children(Inode *self, void *closure)
{
    return or_none(children_of(self));
}

static int Inode_set_children(Inode *self, PyObject *value, void *closure)
{
    if (value != NULL && value != Py_None && !PyDict_Check(value)) {
        PyErr_SetString(PyExc_TypeError, "children are a dict or None");
        return -1;
    }
    if (make_entry(self))
        return -1;
    Py_XSETREF(self->children, value == Py_None ? NULL : Py_XNewRef(value));
    return 0;
}

static PyObject *Inode_get_key(Inode *self, void *closure)
{
    return key_tuple(&self->key);
}

static PyObject *Inode_get_is_directory(Inode *self, void *closure)
{
    return PyBool_FromLong(is_directory(self));
}

static PyObject *Inode_get_type(Inode *self, void *closure)
{
    return PyLong_FromLong((long)(self->key.kind & 0xF) << 12);
}

static PyObject *Inode_told(Inode *self, PyObject *name)
{
    PyObject *children = children_of(self), *inode = children == NULL ? NULL : PyDict_GetItemWithError(children, name);
    return inode == NULL && PyErr_Occurred() ? NULL : or_none(inode);
}

static PyObject *Inode_is_lazy(Inode *self, void *closure)
{
    return PyBool_FromLong(place_of(self) != NULL);
}

static PyObject *Inode_get_nlookup(Inode *self, void *closure)
{
    return PyLong_FromLongLong(self->nlookup);
}

/* Whoever forgets more than there can have been has none left. */
static int Inode_set_nlookup(Inode *self, PyObject *value, void *closure)
{
    int overflow = 0;
    long long count = value == NULL ? -1 : PyLong_AsLongLongAndOverflow(value, &overflow);
    if (value == NULL || PyErr_Occurred() || overflow > 0 || count > MOST_LOOKUPS) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "no lookup count");
        return -1;
    }
    self->nlookup = overflow < 0 || count < -MOST_LOOKUPS ? -MOST_LOOKUPS : count;
    return 0;
}

static PyObject *Inode_get_unlinked(Inode *self, void *closure)
{
    return PyBool_FromLong(self->unlinked);
}

static int Inode_set_unlinked(Inode *self, PyObject *value, void *closure)
{
    int is_so = value == NULL ? -1 : PyObject_IsTrue(value);
    if (is_so >= 0)
        self->unlinked = (unsigned)is_so;
    return is_so < 0 ? -1 : 0;
}

static PyGetSetDef Inode_properties[] = {
    {"nlookup", (getter)Inode_get_nlookup, (setter)Inode_set_nlookup},
    {"unlinked", (getter)Inode_get_unlinked, (setter)Inode_set_unlinked},
    {"entry", (getter)Inode_get_entry, (setter)Inode_set_entry},
    {"parent", (getter)Inode_get_parent, (setter)Inode_set_parent},
    {"children", (getter)Inode_get_children, (setter)Inode_set_children},
    {"key", (getter)Inode_get_key},
    {"is_directory", (getter)Inode_get_is_directory},
    {"type", (getter)Inode_get_type},
    {"has_no_entry_yet", (getter)Inode_is_lazy},
    {NULL},
};

static PyMemberDef Inode_members[] = {
    {"nodeid", T_ULONGLONG, offsetof(Inode, nodeid), READONLY},
    {"name", T_OBJECT, offsetof(Inode, name)},
    {"watch", T_OBJECT, offsetof(Inode, watch)},
    {NULL},
};

static PyMethodDef Inode_methods[] = {
    {"told", (PyCFunction)Inode_told, METH_O, NULL},
    {NULL},
};

PyTypeObject InodeType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Inode",
    .tp_basicsize = sizeof(Inode),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = Inode_new,
    .tp_dealloc = (destructor)Inode_dealloc,
    .tp_traverse = (traverseproc)Inode_traverse,
    .tp_clear = (inquiry)Inode_clear,
    .tp_getset = Inode_properties,
    .tp_members = Inode_members,
    .tp_methods = Inode_methods,
};

