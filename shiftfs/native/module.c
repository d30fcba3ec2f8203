/* shiftfs._native: made of the files beside this one, where there is a compiler. Its twin in plain Python is shiftfs/store.py;
 * the twins of the lane are the handlers in shiftfs/ops. */
#include "native.h"

PyObject *s_path, *s_fd, *s_present, *s_steady, *s_upper, *s_lowers, *s_layer, *s_is_marked, *s_entry_of, *s_links,
    *s_removed, *s_parent, *s_name;

static PyMethodDef functions[] = {
    {"look", (PyCFunction)(void (*)(void))native_look, METH_FASTCALL, NULL},
    {"list_directory", native_list_directory, METH_O, NULL},
    {"list_attributes", native_list_attributes, METH_VARARGS, NULL},
    {"encode_handle", native_encode_handle, METH_VARARGS, NULL},
    {"closed_all", native_closed_all, METH_NOARGS, NULL},
    {"rows", native_rows, METH_VARARGS, NULL},
    {NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "shiftfs._native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void)
{
    static const struct {
        PyObject **at;
        const char *name;
    } names[] = {{&s_path, "path"}, {&s_fd, "fd"}, {&s_present, "present"}, {&s_steady, "steady"}, {&s_upper, "upper"},
                 {&s_lowers, "lowers"}, {&s_layer, "layer"}, {&s_is_marked, "is_marked"}, {&s_entry_of, "entry_of"}, {&s_links, "links"},
                 {&s_removed, "removed"}, {&s_parent, "parent"}, {&s_name, "name"}};
    for (size_t at = 0; at < sizeof names / sizeof *names; at++)
        if ((*names[at].at = PyUnicode_InternFromString(names[at].name)) == NULL)
            return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made == NULL || PyModule_AddType(made, &InodeType) || PyModule_AddType(made, &StoreType)
        || PyModule_AddType(made, &LaneType) || PyModule_AddType(made, &ReaderType)
        || PyModule_AddType(made, &ContentsType) || PyModule_AddType(made, &ReadsType)
        || PyType_Ready(&RowsType) || PyModule_AddType(made, &FileLocksType) || PyModule_AddType(made, &CopiesType)) {
        Py_XDECREF(made);
        return NULL;
    }
    return made;
}
