/* The object that holds what the requests for contents of one mount need: references, and nothing else. Loop thread. */
#include "contents.h"

static int Contents_init(Contents *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"handles", "at_work", "slow_until", "writers", "before", "written", "ahead", "keep", "elsewhere",
                            "aside", "scratch", "noatime", "reads", "writes", NULL};
    static const struct {
        PyObject **at;
        const char *name;
    } attributes[] = {{&s_data, "data"}, {&s_writable, "writable"}, {&s_gate, "gate"}, {&s_descriptor, "descriptor"}};
    for (size_t at = 0; at < sizeof attributes / sizeof *attributes; at++)
        if (*attributes[at].at == NULL && (*attributes[at].at = PyUnicode_InternFromString(attributes[at].name)) == NULL)
            return -1;
    PyObject *handles, *at_work, *slow_until, *writers, *before, *written, *ahead, *keep, *elsewhere, *aside, *scratch;
    if (self->handles != NULL) {
        PyErr_SetString(PyExc_TypeError, "made already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!O!OOO!OOO!Oipp", names, &PyDict_Type, &handles, &PyDict_Type, &at_work,
                                     &PyDict_Type, &slow_until, &PyDict_Type, &writers, &before, &written,
                                     &PyDict_Type, &ahead, &keep, &elsewhere, &ReadsType, &aside, &scratch,
                                     &self->noatime, &self->reads, &self->writes)
        || PyObject_GetBuffer(scratch, &self->scratch, PyBUF_WRITABLE))
        return -1;
    self->handles = Py_NewRef(handles);
    self->at_work = Py_NewRef(at_work);
    self->slow_until = Py_NewRef(slow_until);
    self->writers = Py_NewRef(writers);
    self->before = Py_NewRef(before);
    self->written = Py_NewRef(written);
    self->ahead = Py_NewRef(ahead);
    self->keep = Py_NewRef(keep);
    self->elsewhere = Py_NewRef(elsewhere);
    self->aside = Py_NewRef(aside);
    return 0;
}

static int Contents_traverse(Contents *self, visitproc visit, void *arg)
{
    Py_VISIT(self->handles);
    Py_VISIT(self->at_work);
    Py_VISIT(self->slow_until);
    Py_VISIT(self->writers);
    Py_VISIT(self->before);
    Py_VISIT(self->written);
    Py_VISIT(self->ahead);
    Py_VISIT(self->keep);
    Py_VISIT(self->elsewhere);
    Py_VISIT(self->aside);
    return 0;
}

static int Contents_clear(Contents *self)
{
    Py_CLEAR(self->handles);
    Py_CLEAR(self->at_work);
    Py_CLEAR(self->slow_until);
    Py_CLEAR(self->writers);
    Py_CLEAR(self->before);
    Py_CLEAR(self->written);
    Py_CLEAR(self->ahead);
    Py_CLEAR(self->keep);
    Py_CLEAR(self->elsewhere);
    Py_CLEAR(self->aside);
    return 0;
}

static void Contents_dealloc(Contents *self)
{
    PyObject_GC_UnTrack(self);
    Contents_clear(self);
    PyBuffer_Release(&self->scratch);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyTypeObject ContentsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Contents",
    .tp_basicsize = sizeof(Contents),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Contents_init,
    .tp_dealloc = (destructor)Contents_dealloc,
    .tp_traverse = (traverseproc)Contents_traverse,
    .tp_clear = (inquiry)Contents_clear,
};
