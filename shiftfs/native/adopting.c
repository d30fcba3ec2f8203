/* What has been found at a name becomes an inode that the kernel holds one reference more of: a new one, or the one that is
 * known of it, if that is still where it was.
 *
 * Owns nothing. Where anything about it is special it is SPECIAL, with nothing done. Loop thread.
 */
#include "native.h"

static void reply_for(const Inode *inode, struct fuse_entry_out *out)
{
    out->nodeid = inode->nodeid;
    out->generation = 0;
    out->entry_valid = out->attr_valid = FOREVER;
    out->entry_valid_nsec = out->attr_valid_nsec = 0;
}

/* A directory that is not known yet: Python makes its entry and watches it. Its attributes are in `out`, and go to the
 * kernel unless they may have changed before it was watched. */
static int adopt_directory(Lane *lane, Inode *parent, const Part *part, const char *name, const Key *key,
                           struct fuse_entry_out *out)
{
    if (find_key(&lane->store->by_key, key) != NULL)
        return SPECIAL;
    int result = FAILED;
    PyObject *called = PyBytes_FromString(name), *tuple = key_tuple(key), *reply = NULL;
    if (called == NULL || tuple == NULL)
        goto end;
    int is_known = parent->children != NULL ? PyDict_Contains(parent->children, called) : 0;
    if (is_known == 0 && lane->made_of != Py_None)
        is_known = PyDict_Contains(lane->made_of, tuple);
    if (is_known) {
        result = is_known < 0 ? FAILED : SPECIAL;
        goto end;
    }
    reply = PyObject_CallFunctionObjArgs(lane->adopt, (PyObject *)parent, called, tuple, part->real, NULL);
    if (reply == NULL) {
        if (PyErr_ExceptionMatches(PyExc_OSError)) {  /* somebody was there: the handlers look again, and say what it is */
            PyErr_Clear();
            result = SPECIAL;
        }
        goto end;
    }
    Inode **slot = find_key(&lane->store->by_key, key);
    if (reply == Py_None && slot != NULL) {
        reply_for(*slot, out);
        result = PLAIN;
    } else if (PyBytes_Check(reply) && PyBytes_GET_SIZE(reply) == sizeof *out) {
        memcpy(out, PyBytes_AS_STRING(reply), sizeof *out);
        result = PLAIN;
    } else
        PyErr_SetString(PyExc_TypeError, "no reply for a directory");
end:
    Py_XDECREF(called);
    Py_XDECREF(tuple);
    Py_XDECREF(reply);
    return result;
}

/* Is a real file said to be at this name of a directory of its layer? */
static int is_said_to_be_at(PyObject *real, const Part *part, const char *name)
{
    PyObject *above = PyObject_GetAttr(real, s_parent), *called = PyObject_GetAttr(real, s_name);
    int is_so = above == part->real && called != NULL && PyBytes_Check(called)
        && strcmp(PyBytes_AS_STRING(called), name) == 0;
    PyErr_Clear();
    Py_XDECREF(above);
    Py_XDECREF(called);
    return is_so;
}

/* The same of the one that an inode with an entry is made of, if nothing else is. */
static int is_made_of(Lane *lane, Inode *inode, const Part *part, const char *name)
{
    if (inode->unlinked || (inode->watch != NULL && inode->watch != Py_None) || plain_count(lane, inode) != 1
        || is_written(lane, inode))
        return 0;
    if (!lane->is_layered)
        return is_said_to_be_at(inode->entry, part, name);
    PyObject *upper = PyObject_GetAttr(inode->entry, s_upper), *lowers = PyObject_GetAttr(inode->entry, s_lowers);
    int is_so = upper != NULL && lowers != NULL
        && is_said_to_be_at(upper != Py_None ? upper : PyTuple_GET_ITEM(lowers, 0), part, name);
    PyErr_Clear();
    Py_XDECREF(upper);
    Py_XDECREF(lowers);
    return is_so;
}

/* Is a file that is known still where it was found, in the same layer? */
static int is_still_there(Lane *lane, Inode *inode, Inode *parent, const Part *part, const char *name)
{
    if (inode->parent != (PyObject *)parent || strcmp(PyBytes_AS_STRING(inode->name), name) != 0)
        return 0;
    return inode->entry == NULL ? inode->place == part->real : is_made_of(lane, inode, part, name);
}

/* The inode at a name, which the kernel holds one reference more of from here on, if nothing about it is special. */
int adopt_called(Lane *lane, Inode *parent, const Part *part, const char *name, PyObject *called,
                 const struct statx *found, struct fuse_entry_out *out)
{
    const Device *known = device_of(lane, statx_device(found));
    Key key;
    if (known == NULL || (lane->is_layered && found->stx_ino >> 48) || !key_of(found, &key))
        return SPECIAL;
    if (S_ISDIR(found->stx_mode))
        return describe(lane, found, known->addend, &out->attr) ? FAILED
            : adopt_directory(lane, parent, part, name, &key, out);
    Inode **slot = find_key(&lane->store->by_key, &key);
    Inode *inode = slot == NULL ? NULL : *slot;
    if (inode != NULL && !is_still_there(lane, inode, parent, part, name))
        return SPECIAL;
    if (describe(lane, found, known->addend, &out->attr))
        return FAILED;
    if (inode == NULL) {
        called = called == NULL ? PyBytes_FromString(name) : Py_NewRef(called);
        if (called == NULL)
            return FAILED;
        if (parent->children == NULL && (parent->children = PyDict_New()) == NULL) {
            Py_DECREF(called);
            return FAILED;
        }
        if (PyDict_Contains(parent->children, called)) {  /* it was another inode's so far */
            Py_DECREF(called);
            return PyErr_Occurred() ? FAILED : SPECIAL;
        }
        inode = new_inode(&InodeType, lane->store->next, &key);
        if (inode == NULL) {
            Py_DECREF(called);
            return FAILED;
        }
        inode->name = called;
        inode->parent = Py_NewRef(parent);
        inode->place = Py_NewRef(part->real);
        int failed = PyDict_SetItem(parent->children, called, (PyObject *)inode);
        if (!failed && (failed = insert_new(lane->store, inode))) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            PyDict_DelItem(parent->children, called);
            PyErr_Restore(type, value, traceback);
        }
        Py_DECREF(inode);   /* the table and the directory keep it */
        if (failed)
            return FAILED;
        lane->store->next++;
    }
    inode->nlookup++;
    reply_for(inode, out);
    return PLAIN;
}

int adopt(Lane *lane, Inode *parent, const Part *part, const char *name, const struct statx *found,
          struct fuse_entry_out *out)
{
    return adopt_called(lane, parent, part, name, NULL, found, out);
}
