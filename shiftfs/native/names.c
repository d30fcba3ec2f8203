/* Names that come, go and change in the upper layer alone (or in a single directory), where nothing about them is special:
 * what some handlers in ops.namespace do with nearly all files.
 *
 * Owns the filesystem ids and the umask of the thread while something is created. Whatever is not the plainest case is
 * SPECIAL, and left to Python before anything is done. System calls are made without the interpreter's lock. Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <unistd.h>

#define REGULAR (S_IFREG >> 12)
#define SYMLINK (S_IFLNK >> 12)

/* A directory in which names may be changed. */
typedef struct {
    Inode *inode;
    Part parts[MOST_LAYERS];
    int count;
} Place;

/* 0 if it is special: nothing is held then. */
static int open_place(Lane *lane, Inode *inode, Place *place)
{
    place->inode = inode;
    if (inode->unlinked || inode->nlookup <= 0 || inode->entry == NULL)
        return 0;
    if (lane->is_layered) {
        PyObject *removed = PyObject_GetAttr(inode->entry, s_removed);
        int is_there = removed == Py_False;
        PyErr_Clear();
        Py_XDECREF(removed);
        if (!is_there)
            return 0;
    }
    place->count = directory_parts(lane, inode, place->parts);
    if (place->count > 0 && is_changed_here(lane, place->parts[0].layer))
        return 1;
    release_parts(place->parts, place->count);
    return 0;
}

static void close_place(Place *place)
{
    release_parts(place->parts, place->count);
}

static int is_name(const Lane *lane, const char *name, size_t size)
{
    return size >= 2 && size <= 256 && memchr(name, 0, size) == name + size - 1 && !memchr(name, '/', size)
        && !is_dot(name) && !(lane->is_layered && strncmp(name, ".wh.", 4) == 0);
}

int has_one_place(Lane *lane, Inode *inode)
{
    PyObject *others = PyObject_GetAttrString((PyObject *)lane->store, "_other_places");
    int is_so = others != NULL && PyDict_Check(others)
        && (PyDict_GET_SIZE(others) == 0 || PyDict_Contains(others, (PyObject *)inode) == 0);
    Py_XDECREF(others);
    PyErr_Clear();
    return is_so;
}

/* The file that the kernel was told is there, if it is one of the upper alone, with no other name that is known. NULL
 * with no exception set where that is special. The table keeps it. */
static Inode *told_alone(Lane *lane, const Place *place, PyObject *name)
{
    Inode *inode = place->inode->children == NULL ? NULL
        : (Inode *)PyDict_GetItemWithError(place->inode->children, name);
    if (inode == NULL || inode->unlinked || inode->nlookup <= 0 || inode->parent != (PyObject *)place->inode
        || (inode->key.kind != REGULAR && inode->key.kind != SYMLINK) || (inode->watch != NULL && inode->watch != Py_None)
        || inode->name == NULL || PyObject_RichCompareBool(inode->name, name, Py_EQ) != 1) {
        PyErr_Clear();
        return NULL;
    }
    int is_alone = has_one_place(lane, inode);
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

static int error_at(int directory, const char *name, struct statx *found)
{
    return statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, SEEN, found) ? errno : 0;
}

static int is_absent(const Part *parts, int from, int count, const char *name)
{
    struct statx ignored;
    for (int at = from; at < count; at++)
        if (error_at(parts[at].fd, name, &ignored) != ENOENT)
            return 0;
    return 1;
}

/* Is that file, and nothing else, what the layers have at the name? */
static int is_only(const Place *place, const char *name, const Key *key)
{
    struct statx found;
    return error_at(place->parts[0].fd, name, &found) == 0 && found.stx_nlink == 1 && is_key_of(key, &found)
        && is_absent(place->parts, 1, place->count, name);
}

/* Is there nothing in the upper that hides the name? */
static int is_unhidden(const Lane *lane, const Place *place, const char *name)
{
    char hiding[256] = ".wh.";
    size_t length = strlen(name);
    if (!lane->is_layered || length + 4 > 255)
        return 1;
    memcpy(hiding + 4, name, length + 1);
    return is_absent(place->parts, 0, 1, hiding);
}

static int is_free(const Lane *lane, const Place *place, const char *name)
{
    return is_absent(place->parts, 0, place->count, name) && is_unhidden(lane, place, name);
}

/* Python has failed: with an errno to answer, or as it never should. */
static int failed(Changed *changed)
{
    PyObject *type, *value, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_OSError))
        return FAILED;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *number = value == NULL ? NULL : PyObject_GetAttrString(value, "errno");
    changed->error = number != NULL && PyLong_Check(number) ? (int)PyLong_AsLong(number) : EIO;
    changed->size = 0;
    PyErr_Clear();
    Py_XDECREF(number);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return PLAIN;
}

/* What Python has done: None, or the errno to answer. */
static int done(PyObject *result, Changed *changed)
{
    if (result == NULL)
        return failed(changed);
    changed->error = result == Py_None ? 0 : (int)PyLong_AsLong(result);
    Py_DECREF(result);
    changed->size = 0;
    return PyErr_Occurred() ? FAILED : PLAIN;
}

/* --- creation --- */

/* What is to be made: a regular file, a directory, or a symlink. */
typedef struct {
    mode_t type, mode, mask;
    const char *target;         /* of a symlink */
} Making;

static int make_one(const Making *making, int directory, const char *name)
{
    if (making->type == S_IFDIR)
        return mkdirat(directory, name, making->mode & 07777);
    return making->type == S_IFLNK ? symlinkat(making->target, directory, name)
        : mknodat(directory, name, S_IFREG | (making->mode & 07777), 0);
}

/* Make it as the caller. Without the interpreter's lock; nothing has been done where it is false. */
static int make_as(const Changes *may, int directory, const char *name, const Making *making, uint32_t uid, uint32_t gid)
{
    int is_another = uid != may->own_uid || gid != may->own_gid, is_caller = 1;
    mode_t before = umask(making->mask & 0777);
    if (is_another) {
        setfsgid(gid);
        setfsuid(uid);
        is_caller = (uint32_t)setfsuid((uid_t)-1) == uid && (uint32_t)setfsgid((gid_t)-1) == gid;
    }
    int is_made = is_caller && make_one(making, directory, name) == 0;
    if (is_another) {
        setfsgid(may->own_gid);
        setfsuid(may->own_uid);
    }
    umask(before);
    return is_made;
}

/* Is that what has been made? */
static int is_new(const Making *making, int directory, const char *name, struct statx *found)
{
    return error_at(directory, name, found) == 0 && (found->stx_mode & S_IFMT) == making->type
        && (making->type == S_IFDIR || found->stx_nlink == 1);
}

static int make(Lane *lane, Inode *parent, const struct fuse_in_header *header, const Making *making, const char *name,
                Changed *changed)
{
    uint32_t uid, gid;
    int result = real_id(lane->may.uids, 1, header->uid, &uid);
    if (result == PLAIN)
        result = real_id(lane->may.gids, 1, header->gid, &gid);
    Place place;
    if (result != PLAIN || !open_place(lane, parent, &place))
        return result == FAILED ? FAILED : SPECIAL;
    PyObject *called = PyBytes_FromString(name);
    int is_told = called == NULL ? -1 : parent->children == NULL ? 0 : PyDict_Contains(parent->children, called);
    if (is_told) {
        Py_XDECREF(called);
        close_place(&place);
        return is_told < 0 ? FAILED : SPECIAL;
    }
    struct statx found;
    int directory = place.parts[0].fd, is_made = 0, is_seen = 0;
    Py_BEGIN_ALLOW_THREADS
    is_made = is_free(lane, &place, name) && make_as(&lane->may, directory, name, making, uid, gid);
    is_seen = is_made && is_new(making, directory, name, &found);
    Py_END_ALLOW_THREADS
    result = is_seen ? adopt(lane, parent, &place.parts[0], name, &found, &changed->entry) : SPECIAL;
    changed->size = sizeof changed->entry;
    if (is_made && result == SPECIAL) {  /* somebody has been there since */
        PyObject *entry = PyObject_CallFunction(lane->may.made, "OOi", parent, called, (int)making->type);
        if (entry != NULL && PyBytes_Check(entry) && PyBytes_GET_SIZE(entry) == sizeof changed->entry) {
            memcpy(&changed->entry, PyBytes_AS_STRING(entry), sizeof changed->entry);
            Py_DECREF(entry);
            result = PLAIN;
        } else
            result = done(entry, changed);
    }
    Py_DECREF(called);
    close_place(&place);
    return result;
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

/* A file has lost its name, and as a rule its last; `fd` is it, and its entry's from here on: it may be open, and is
 * served until the kernel forgets it. As InodeTable.untell and bury have it. */
static int lose_name(Lane *lane, Inode *parent, PyObject *name, Inode *inode, int fd, int is_last, Changed *changed)
{
    PyObject *gone = PyObject_CallFunction(lane->may.has_gone, "OiO", inode->entry, fd, is_last ? Py_True : Py_False);
    if (gone == NULL)
        return failed(changed);
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

static int remove_file(Lane *lane, Inode *parent, const char *name, Changed *changed)
{
    Place place;
    if (!open_place(lane, parent, &place))
        return SPECIAL;
    PyObject *called = PyBytes_FromString(name);
    Inode *inode = called == NULL ? NULL : told_alone(lane, &place, called);
    int result = called == NULL ? FAILED : SPECIAL;
    if (inode != NULL) {
        Py_INCREF(inode);
        result = remove_told(lane, &place, called, inode, changed);
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
        return is_free(lane, to, new_name) && renameat2(source, name, target, new_name, RENAME_NOREPLACE) == 0;
    if ((replaced->fd = open_only(to, new_name, &replaced->key)) < 0)
        return 0;
    if (!is_unhidden(lane, to, new_name) || renameat2(source, name, target, new_name, 0) != 0) {
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
        result = done(PyObject_CallFunctionObjArgs(lane->may.has_moved, inode->entry, to->inode->entry, new_name, NULL),
                      changed);
    if (result == PLAIN && changed->error == 0)
        result = tell_elsewhere(inode, from->inode, name, to, new_name);
    Py_DECREF(inode);
    Py_XDECREF(replaced.inode);
    return result;
}

static int rename_file(Lane *lane, Inode *parent, uint64_t newdir, const char *name, const char *new_name, uint32_t flags,
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

static int is_two_names(const Lane *lane, const char *text, size_t size)
{
    size_t first = strnlen(text, size) + 1;
    return first < size && is_name(lane, text, first) && is_name(lane, text + first, size - first);
}

int change_name(Lane *lane, Inode *inode, const struct fuse_in_header *header, const char *body, size_t length,
                Changed *changed)
{
    int result = SPECIAL;
    if (header->opcode == FUSE_MKNOD && length > sizeof(struct fuse_mknod_in)) {
        const struct fuse_mknod_in *in = (const void *)body;
        const char *name = (const char *)(in + 1);
        const Making file = {S_IFREG, in->mode, in->umask, NULL};
        if (S_ISREG(in->mode) && is_name(lane, name, length - sizeof *in))
            result = make(lane, inode, header, &file, name, changed);
    } else if (header->opcode == FUSE_MKDIR && length > sizeof(struct fuse_mkdir_in)) {
        const struct fuse_mkdir_in *in = (const void *)body;
        const char *name = (const char *)(in + 1);
        const Making directory = {S_IFDIR, in->mode, in->umask, NULL};
        if (is_name(lane, name, length - sizeof *in))
            result = make(lane, inode, header, &directory, name, changed);
    } else if (header->opcode == FUSE_SYMLINK && length > 0) {
        size_t first = strnlen(body, length) + 1;
        const Making link = {S_IFLNK, 0, 022, body + first};
        if (first < length && memchr(body + first, 0, length - first) == body + length - 1 && is_name(lane, body, first))
            result = make(lane, inode, header, &link, body, changed);
    } else if (header->opcode == FUSE_UNLINK && is_name(lane, body, length)) {
        result = remove_file(lane, inode, body, changed);
    } else if (header->opcode == FUSE_RENAME && length > sizeof(struct fuse_rename_in)) {
        const struct fuse_rename_in *in = (const void *)body;
        const char *name = (const char *)(in + 1);
        if (is_two_names(lane, name, length - sizeof *in))
            result = rename_file(lane, inode, in->newdir, name, name + strlen(name) + 1, 0, changed);
    } else if (header->opcode == FUSE_RENAME2 && length > sizeof(struct fuse_rename2_in)) {
        const struct fuse_rename2_in *in = (const void *)body;
        const char *name = (const char *)(in + 1);
        if (is_two_names(lane, name, length - sizeof *in))
            result = rename_file(lane, inode, in->newdir, name, name + strlen(name) + 1, in->flags, changed);
    }
    return result;
}
