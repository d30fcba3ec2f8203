/* Files lose their names, or get others.
 *
 * Owns a descriptor of what loses its name, from before that until it is its entry's; Python keeps the books of those. Never
 * removes or replaces another file than the kernel was told of, nor one that is more than a file of the upper, or of one
 * lower, with that one name: all such is SPECIAL, with nothing done. What the table has been told of a name is changed
 * after the layer. System calls are made without the interpreter's lock. Loop thread.
 */
#include "names.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define REGULAR (S_IFREG >> 12)
#define SYMLINK (S_IFLNK >> 12)

int has_one_place(Lane *lane, Inode *inode)
{
    PyObject *others = PyObject_GetAttrString((PyObject *)lane->store, "_other_places");
    int is_so = others != NULL && PyDict_Check(others)
        && (PyDict_GET_SIZE(others) == 0 || PyDict_Contains(others, (PyObject *)inode) == 0);
    Py_XDECREF(others);
    PyErr_Clear();
    return is_so;
}

/* The file that the kernel was told is there, with no other name that is known. NULL with no exception set where that is
 * special. The table keeps it. */
static Inode *told(Lane *lane, const Place *place, PyObject *name)
{
    Inode *inode = place->inode->children == NULL ? NULL
        : (Inode *)PyDict_GetItemWithError(place->inode->children, name);
    if (inode == NULL || inode->unlinked || inode->nlookup <= 0 || inode->parent != (PyObject *)place->inode
        || (inode->key.kind != REGULAR && inode->key.kind != SYMLINK) || (inode->watch != NULL && inode->watch != Py_None)
        || inode->name == NULL || PyObject_RichCompareBool(inode->name, name, Py_EQ) != 1) {
        PyErr_Clear();
        return NULL;
    }
    return has_one_place(lane, inode) ? inode : NULL;
}

/* The same, if it is one of the upper alone. */
static Inode *told_alone(Lane *lane, const Place *place, PyObject *name)
{
    Inode *inode = told(lane, place, name);
    int is_alone = inode != NULL;
    if (is_alone && inode->entry == NULL)
        is_alone = place_of(inode) == place->parts[0].real;
    else if (is_alone && lane->is_layered) {
        PyObject *gate = PyObject_GetAttrString(inode->entry, "gate"), *upper = PyObject_GetAttr(inode->entry, s_upper);
        PyObject *its_own = upper == NULL || upper == Py_None ? NULL : PyObject_GetAttrString(upper, "key");
        Key key = {0};
        is_alone = gate == Py_None && its_own != NULL && plain_count(lane, inode) == 1 && read_key(its_own, &key) == 0
            && same_key(&key, &inode->key);
        Py_XDECREF(gate);
        Py_XDECREF(upper);
        Py_XDECREF(its_own);
    }
    PyErr_Clear();
    return is_alone ? inode : NULL;
}

/* The same, if it is one of a lower alone. */
static Inode *told_below(Lane *lane, const Place *place, PyObject *name)
{
    Inode *inode = told(lane, place, name);
    if (inode == NULL || inode->entry == NULL)
        return inode != NULL && place_of(inode) != place->parts[0].real ? inode : NULL;
    PyObject *gate = PyObject_GetAttrString(inode->entry, "gate"), *upper = PyObject_GetAttr(inode->entry, s_upper);
    int is_below = gate == Py_None && upper == Py_None && plain_count(lane, inode) == 1;
    PyErr_Clear();
    Py_XDECREF(gate);
    Py_XDECREF(upper);
    return is_below ? inode : NULL;
}

/* Is that file, and nothing else, what the layers have at the name? */
static int is_only(const Place *place, const char *name, const Key *key)
{
    struct statx found;
    return error_at(place->parts[0].fd, name, &found) == 0 && found.stx_nlink == 1 && is_key_of(key, &found)
        && is_absent(place->parts, 1, place->count, name);
}

/* --- removal --- */

/* May one more that has no name stay open? */
static int has_room(const Changes *may)
{
    return PySet_GET_SIZE(may->pinned) < may->most_pinned;
}

/* A descriptor of that file, if it, and nothing else, is what the layers have at the name; else -1. */
static int open_only(const Place *place, const char *name, const Key *key)
{
    int fd = openat(place->parts[0].fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    struct statx found;
    if (fd >= 0 && look_at(fd, &found) == 0 && found.stx_nlink == 1 && is_key_of(key, &found)
        && is_absent(place->parts, 1, place->count, name))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static int has_no_name(int fd)
{
    struct statx found;
    return look_at(fd, &found) == 0 && found.stx_nlink == 0;
}

/* A file has lost its name, as Python says (which is taken over): True if that was its last. As InodeTable.untell and bury
 * have it. */
static int untell(Lane *lane, Inode *parent, PyObject *name, Inode *inode, PyObject *gone, Changed *changed)
{
    if (gone == NULL)
        return python_failed(changed);
    PyObject *nameless = PyBytes_FromStringAndSize(NULL, 0);
    int is_gone = gone == Py_True;
    Py_DECREF(gone);
    if (nameless == NULL)
        return FAILED;
    if (PyDict_DelItem(parent->children, name)) {
        Py_DECREF(nameless);
        return FAILED;
    }
    Py_CLEAR(inode->parent);
    Py_SETREF(inode->name, nameless);
    if (is_gone) {
        inode->unlinked = 1;
        unkey(lane->store, inode);
    }
    return PLAIN;
}

/* The same of one of the upper; `fd` is it, and its entry's from here on: it may be open, and is served until the kernel
 * forgets it. */
static int lose_name(Lane *lane, Inode *parent, PyObject *name, Inode *inode, int fd, int is_last, Changed *changed)
{
    PyObject *gone = PyObject_CallFunction(lane->may.has_gone, "OiO", inode->entry, fd, is_last ? Py_True : Py_False);
    return untell(lane, parent, name, inode, gone, changed);
}

static int remove_told(Lane *lane, const Place *place, PyObject *name, Inode *inode, Changed *changed)
{
    if (!has_room(&lane->may))
        return SPECIAL;
    if (make_entry(inode))
        return FAILED;
    const char *text = PyBytes_AS_STRING(name);
    Key key = inode->key;
    int fd, is_removed, is_last = 0;
    Py_BEGIN_ALLOW_THREADS
    fd = open_only(place, text, &key);
    is_removed = fd >= 0 && unlinkat(place->parts[0].fd, text, 0) == 0;
    if (is_removed)
        is_last = has_no_name(fd);
    else if (fd >= 0)
        close(fd);
    Py_END_ALLOW_THREADS
    return is_removed ? lose_name(lane, place->inode, name, inode, fd, is_last, changed) : SPECIAL;
}

/* Without the interpreter's lock: a whiteout where the upper has nothing. False if that file is not what shows. */
static int hide(const Lane *lane, const Place *place, const char *name, const Key *key)
{
    struct statx found;
    int at = 0, error = ENOENT;
    for (; at < place->count && error == ENOENT; at++)
        error = error_at(place->parts[at].fd, name, &found);
    at--;
    return error == 0 && at > 0 && found.stx_nlink == 1 && is_key_of(key, &found) && is_unhidden(lane, place, at, name)
        && linkat(lane->may.whiteout_in, lane->may.whiteout, place->parts[0].fd, name, 0) == 0;
}

static int hide_told(Lane *lane, const Place *place, PyObject *name, Inode *inode, Changed *changed)
{
    if (make_entry(inode))
        return FAILED;
    Key key = inode->key;
    int is_hidden;
    Py_BEGIN_ALLOW_THREADS
    is_hidden = hide(lane, place, PyBytes_AS_STRING(name), &key);
    Py_END_ALLOW_THREADS
    if (!is_hidden)
        return SPECIAL;
    PyObject *gone = PyObject_CallFunctionObjArgs(lane->may.is_hidden, inode->entry, NULL);
    return untell(lane, place->inode, name, inode, gone, changed);
}

int remove_file(Lane *lane, Inode *parent, const char *name, Changed *changed)
{
    Place place;
    if (!open_place(lane, parent, &place))
        return SPECIAL;
    PyObject *called = PyBytes_FromString(name);
    Inode *inode = called == NULL ? NULL : told_alone(lane, &place, called);
    int is_below = called != NULL && inode == NULL && lane->may.whiteout != NULL;
    if (is_below)
        inode = told_below(lane, &place, called);
    int result = called == NULL ? FAILED : SPECIAL;
    if (inode != NULL) {
        Py_INCREF(inode);
        result = is_below ? hide_told(lane, &place, called, inode, changed)
            : remove_told(lane, &place, called, inode, changed);
        Py_DECREF(inode);
    }
    Py_XDECREF(called);
    close_place(&place);
    return result;
}

/* --- rename --- */

/* The kernel is told of one name what it was told of another, as InodeTable.renamed has it. */
static int tell_elsewhere(Inode *inode, Inode *parent, PyObject *name, const Place *to, PyObject *new_name)
{
    Inode *target = to->inode;
    if (target->children == NULL && (target->children = PyDict_New()) == NULL)
        return FAILED;
    if (PyDict_SetItem(target->children, new_name, (PyObject *)inode))
        return FAILED;
    if (PyDict_DelItem(parent->children, name))
        return FAILED;
    Py_XSETREF(inode->parent, Py_NewRef(target));
    Py_XSETREF(inode->name, Py_NewRef(new_name));
    if (place_of(inode) != NULL)
        Py_XSETREF(inode->place, Py_NewRef(to->parts[0].real));
    return PLAIN;
}

/* What is in the way of a file that gets a name; with no inode: nothing is. */
typedef struct {
    Inode *inode;
    Key key;
    int fd;             /* it, once it has lost its name to the other */
    int has_gone;       /* and that was its last */
} Replaced;

/* Without the interpreter's lock; nothing has been done where it is false. */
static int rename_onto(const Lane *lane, const Place *from, const char *name, const Key *key, const Place *to,
                       const char *new_name, Replaced *replaced)
{
    if (!is_only(from, name, key))
        return 0;
    int source = from->parts[0].fd, target = to->parts[0].fd;
    if (replaced->inode == NULL)
        return is_name_free(lane, to, new_name) && renameat2(source, name, target, new_name, RENAME_NOREPLACE) == 0;
    if ((replaced->fd = open_only(to, new_name, &replaced->key)) < 0)
        return 0;
    if (!is_unhidden(lane, to, 1, new_name) || renameat2(source, name, target, new_name, 0) != 0) {
        close(replaced->fd);
        return 0;
    }
    replaced->has_gone = has_no_name(replaced->fd);
    return 1;
}

static int move(Lane *lane, const Place *from, PyObject *name, const Place *to, PyObject *new_name, uint32_t flags,
                Changed *changed)
{
    Inode *inode = told_alone(lane, from, name);
    Replaced replaced = {0};
    int is_told = to->inode->children == NULL ? 0 : PyDict_Contains(to->inode->children, new_name);
    if (is_told > 0)
        replaced.inode = told_alone(lane, to, new_name);
    if (inode == NULL || is_told < 0)
        return is_told < 0 ? FAILED : SPECIAL;
    if (is_told && (replaced.inode == NULL || replaced.inode == inode || flags & RENAME_NOREPLACE || !has_room(&lane->may)))
        return SPECIAL;
    if (replaced.inode != NULL && make_entry(replaced.inode))
        return FAILED;
    Key key = inode->key;
    if (replaced.inode != NULL)
        replaced.key = replaced.inode->key;
    int is_moved, result = PLAIN;
    Py_INCREF(inode);
    Py_XINCREF(replaced.inode);
    Py_BEGIN_ALLOW_THREADS
    is_moved = rename_onto(lane, from, PyBytes_AS_STRING(name), &key, to, PyBytes_AS_STRING(new_name), &replaced);
    Py_END_ALLOW_THREADS
    if (!is_moved)
        result = SPECIAL;
    if (is_moved && replaced.inode != NULL)
        result = lose_name(lane, to->inode, new_name, replaced.inode, replaced.fd, replaced.has_gone, changed);
    if (result == PLAIN && changed->error == 0 && inode->entry != NULL)
        result = python_did(PyObject_CallFunctionObjArgs(lane->may.has_moved, inode->entry, to->inode->entry, new_name,
                                                         NULL), changed);
    if (result == PLAIN && changed->error == 0)
        result = tell_elsewhere(inode, from->inode, name, to, new_name);
    Py_DECREF(inode);
    Py_XDECREF(replaced.inode);
    return result;
}

int rename_file(Lane *lane, Inode *parent, uint64_t newdir, const char *name, const char *new_name, uint32_t flags,
                Changed *changed)
{
    Inode **slot = find_nodeid(&lane->store->by_nodeid, newdir);
    Place from, to;
    if (slot == NULL || flags & ~(uint32_t)RENAME_NOREPLACE || (*slot == parent && strcmp(name, new_name) == 0))
        return SPECIAL;
    Inode *target = (Inode *)Py_NewRef(*slot);
    int result = SPECIAL;
    if (open_place(lane, parent, &from)) {
        if (open_place(lane, target, &to)) {
            PyObject *called = PyBytes_FromString(name), *wanted = PyBytes_FromString(new_name);
            result = called == NULL || wanted == NULL ? FAILED : move(lane, &from, called, &to, wanted, flags, changed);
            Py_XDECREF(called);
            Py_XDECREF(wanted);
            close_place(&to);
        }
        close_place(&from);
    }
    Py_DECREF(target);
    return result;
}
