/* A small file of a lower layer comes up whole, where nothing about it is special: what overlay.copyup.CopyUp does with
 * nearly all files.
 *
 * Owns the copy that has been made last, until its entry has been told of it: whoever waits for it is answered before.
 * What the disk does not do within moments is left to Python, which has workers for it, as is whatever fails and whatever
 * is not the plainest case. Until it has a name a copy is an unnamed file, so nothing of it is left then. System calls
 * are made without the interpreter's lock. Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* What the copies of one mount need. */
typedef struct {
    PyObject_HEAD
    PyObject *work;             /* keeps the work directory open */
    PyObject *attribute;        /* the name of overlay.origin */
    PyObject *uuids;            /* of the lower layers' filesystems; None where an origin is more than a file handle */
    PyObject *on_copy;          /* on_copy(entry, fd) is told of a file that has no name yet */
    PyObject *came_up;          /* came_up(entry, key, fd): it has one; the descriptor, if not -1, is the entry's */
    int64_t nobody_uid, nobody_gid;     /* ids that stand for others; -1 where all ids are known */
    struct {
        PyObject *entry;        /* has come up, and is to be told so; NULL for none */
        Key key;
        int fd, keeps;
        int source, lower;      /* still open; -1 for none */
    } last;
    Workshop shop;
} Copies;

static PyObject *s_gate, *s_is_impure;

/* --- what is copied --- */

/* A lower file, and the directory of the upper that it is to be in. */
typedef struct {
    Reach lower;
    Part above;
    PyObject *entry, *name;
    const char *uuid;           /* 16 bytes */
} Subject;

static void release_subject(Subject *subject)
{
    if (subject->lower.part.real != NULL)
        release_reach(&subject->lower);
    if (subject->above.real != NULL)
        release_parts(&subject->above, 1);
    Py_CLEAR(subject->entry);
    Py_CLEAR(subject->name);
}

static int is_attribute(PyObject *object, PyObject *name, PyObject *value)
{
    PyObject *found = PyObject_GetAttr(object, name);
    Py_XDECREF(found);
    return found == value;
}

/* Is its directory up, and known to have things in it that have come from elsewhere? */
static int find_above(PyObject *entry, Part *above)
{
    PyObject *parent = PyObject_GetAttr(entry, s_parent);
    PyObject *upper = parent == NULL || parent == Py_None ? NULL : PyObject_GetAttr(parent, s_upper);
    int is_fit = upper != NULL && upper != Py_None && is_attribute(parent, s_removed, Py_False)
        && is_attribute(upper, s_is_impure, Py_True) && part_of(upper, above, 0);
    Py_XDECREF(parent);
    Py_XDECREF(upper);
    return is_fit;
}

/* Is a file one that is all in one lower layer? With no exception set. */
static int find_subject(const Copies *copies, PyObject *entry, Subject *subject)
{
    memset(subject, 0, sizeof *subject);
    PyObject *lowers = PyObject_GetAttr(entry, s_lowers), *lower = NULL, *layer = NULL, *uuid = NULL;
    if (lowers != NULL && PyTuple_Check(lowers) && PyTuple_GET_SIZE(lowers) == 1)
        lower = PyTuple_GET_ITEM(lowers, 0);
    if (lower != NULL && is_attribute(entry, s_upper, Py_None) && is_attribute(entry, s_gate, Py_None)
        && is_attribute(entry, s_removed, Py_False) && is_attribute(entry, s_links, Py_None))
        layer = PyObject_GetAttr(lower, s_layer);
    long at = layer == NULL ? -1 : PyLong_AsLong(layer) - 1;
    if (at >= 0 && at < PyTuple_GET_SIZE(copies->uuids))
        uuid = PyTuple_GET_ITEM(copies->uuids, at);
    int is_fit = uuid != NULL && PyBytes_Check(uuid) && PyBytes_GET_SIZE(uuid) == 16 && reach_real(lower, &subject->lower)
        && find_above(entry, &subject->above);
    if (is_fit)
        subject->name = PyObject_GetAttr(entry, s_name);
    is_fit = is_fit && subject->name != NULL && PyBytes_Check(subject->name) && PyBytes_GET_SIZE(subject->name) > 0;
    subject->entry = Py_NewRef(entry);
    subject->uuid = is_fit ? PyBytes_AS_STRING(uuid) : NULL;
    Py_XDECREF(lowers);
    Py_XDECREF(layer);
    PyErr_Clear();
    if (!is_fit)
        release_subject(subject);
    return is_fit;
}

/* Is it a small file with one name, without holes, that may be changed and whose owner is known? */
static int is_small(const Lane *lane, const Copies *copies, const Key *key, const struct statx *found)
{
    return is_key_of(key, found) && device_of(lane, statx_device(found)) != NULL && S_ISREG(found->stx_mode)
        && found->stx_nlink == 1 && found->stx_size <= LARGEST_COPY && found->stx_blocks * 512 >= found->stx_size
        && !(found->stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND))
        && (copies->nobody_uid < 0 || (found->stx_uid != copies->nobody_uid && found->stx_gid != copies->nobody_gid));
}

/* --- and how it appears --- */

/* Some filesystems, and older kernels, take these only by a path. */
static int give_name(int made, int directory, const char *name)
{
    char path[40];
    if (linkat(made, "", directory, name, AT_EMPTY_PATH) == 0)
        return 1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", made);
    return errno != EEXIST && linkat(AT_FDCWD, path, directory, name, AT_SYMLINK_FOLLOW) == 0;
}

static void set_times(int directory, const struct statx *to)
{
    struct timespec times[2] = {{to->stx_atime.tv_sec, to->stx_atime.tv_nsec}, {to->stx_mtime.tv_sec, to->stx_mtime.tv_nsec}};
    char path[40];
    if (utimensat(directory, "", times, AT_EMPTY_PATH) == 0)
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", directory);
    int ignored = utimensat(AT_FDCWD, path, times, 0);  /* what was asked for has been done */
    (void)ignored;
}

static int publish(const Subject *subject, int made)
{
    struct statx before;
    int directory = subject->above.fd;
    if (look_at(directory, &before) || !give_name(made, directory, PyBytes_AS_STRING(subject->name)))
        return SPECIAL;
    set_times(directory, &before);
    return PLAIN;
}

/* As the lower file is, and as is wanted; unless its owner is to change, which changes more than that. */
static Made made_as(const struct statx *lower, const Wanted *wanted)
{
    Made as = {lower->stx_uid, lower->stx_gid, lower->stx_mode,
               {{lower->stx_atime.tv_sec, lower->stx_atime.tv_nsec}, {lower->stx_mtime.tv_sec, lower->stx_mtime.tv_nsec}}};
    if (wanted == NULL || wanted->valid & OWNER)
        return as;
    if (wanted->valid & FATTR_MODE)
        as.mode = wanted->mode;
    for (int at = 0; at < 2; at++)
        if (wanted->valid & TIMES && wanted->times[at].tv_nsec != UTIME_OMIT)
            as.times[at] = wanted->times[at];
    return as;
}

/* Does the inode's owner have a shown id? */
static int is_mapped(const Lane *lane, const struct statx *found)
{
    uint32_t uid, gid;
    if (mapped_id(lane->uids, found->stx_uid, &uid) || mapped_id(lane->gids, found->stx_gid, &gid)) {
        PyErr_Clear();
        return 0;
    }
    return uid != UNMAPPED && gid != UNMAPPED;
}

static int copy_up(Lane *lane, Copies *copies, const Subject *subject, const Wanted *wanted, int *copy)
{
    struct statx found;
    Key key;
    int lower, source = -1, made = -1, is_fit, result = SPECIAL;
    Py_BEGIN_ALLOW_THREADS
    lower = open_reach(&subject->lower);
    is_fit = lower >= 0 && look_at(lower, &found) == 0 && is_small(lane, copies, &subject->lower.key, &found);
    Py_END_ALLOW_THREADS
    if (wanted != NULL)
        is_fit = is_fit && !takes_set_ids(wanted, found.stx_mode)
            && (!(wanted->valid & (OWNER | FATTR_MODE)) || is_mapped(lane, &found));
    if (is_fit) {
        Made as = made_as(&found, wanted);
        Py_BEGIN_ALLOW_THREADS
        made = make_copy(&copies->shop, subject->uuid, &as, found.stx_size, lower, &source, &key);
        Py_END_ALLOW_THREADS
    }
    if (made >= 0 && device_of(lane, key.device) != NULL) {
        PyObject *told = PyObject_CallFunction(copies->on_copy, "Oi", subject->entry, made);
        Py_XDECREF(told);
        if (told != NULL) {
            Py_BEGIN_ALLOW_THREADS
            result = publish(subject, made);
            Py_END_ALLOW_THREADS
        }
        PyErr_Clear();
    }
    if (subject->lower.name == NULL)
        lower = -1;     /* it is the entry's */
    copies->last.source = source;
    copies->last.lower = lower;
    copies->last.fd = *copy = made;
    if (result != SPECIAL) {
        copies->last.entry = Py_NewRef(subject->entry);
        copies->last.key = key;
        copies->last.keeps = wanted == NULL;
        return PLAIN;
    }
    finish_copy(lane);
    return SPECIAL;
}

static void close_all(const int *fds, int count)
{
    for (int at = 0; at < count; at++)
        if (fds[at] >= 0)
            close(fds[at]);
}

void finish_copy(Lane *lane)
{
    Copies *copies = (Copies *)lane->copies;
    if (lane->copies == Py_None || (copies->last.entry == NULL && copies->last.source < 0 && copies->last.lower < 0))
        return;
    PyObject *entry = copies->last.entry;
    int fds[] = {copies->last.source, copies->last.lower, entry != NULL && copies->last.keeps ? -1 : copies->last.fd};
    if (entry != NULL) {
        PyObject *key = key_tuple(&copies->last.key);
        PyObject *done = key == NULL ? NULL : PyObject_CallFunction(copies->came_up, "OOi", entry, key,
                                                                   copies->last.keeps ? copies->last.fd : -1);
        if (done == NULL)
            PyErr_WriteUnraisable(copies->came_up);     /* it has been answered */
        Py_XDECREF(done);
        Py_XDECREF(key);
        Py_CLEAR(copies->last.entry);
    }
    copies->last.source = copies->last.lower = copies->last.fd = -1;
    close_all(fds, 3);
}

int bring_up(Lane *lane, Inode *inode, const Wanted *wanted, int *copy)
{
    if (lane->copies == Py_None || inode->unlinked || inode->key.kind != S_IFREG >> 12 || !is_followed(inode)
        || (inode->watch != NULL && inode->watch != Py_None))
        return SPECIAL;
    Copies *copies = (Copies *)lane->copies;
    if (is_slow(&copies->shop.patience))
        return SPECIAL;
    PyObject *entry = PyObject_GetAttrString((PyObject *)inode, "entry");  /* made, if nobody has asked for it so far */
    if (entry == NULL)
        return FAILED;
    Subject subject;
    int result = SPECIAL;
    if (find_subject(copies, entry, &subject)) {
        result = copy_up(lane, copies, &subject, wanted, copy);
        release_subject(&subject);
    }
    Py_DECREF(entry);
    return result;
}

/* --- */

static int Copies_init(Copies *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"work", "attribute", "uuids", "nobody_uid", "nobody_gid", "syncs", "on_copy", "came_up", NULL};
    static const struct {
        PyObject **at;
        const char *name;
    } attributes[] = {{&s_gate, "gate"}, {&s_is_impure, "is_impure"}};
    for (size_t at = 0; at < sizeof attributes / sizeof *attributes; at++)
        if (*attributes[at].at == NULL && (*attributes[at].at = PyUnicode_InternFromString(attributes[at].name)) == NULL)
            return -1;
    PyObject *work, *attribute, *uuids, *on_copy, *came_up;
    long long uid, gid;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OSO!LLpOO", names, &work, &attribute, &PyTuple_Type, &uuids, &uid, &gid,
                                     &self->shop.syncs, &on_copy, &came_up))
        return -1;
    PyObject *fd = PyObject_GetAttr(work, s_fd);
    self->shop.directory = fd == NULL ? -1 : (int)PyLong_AsLong(fd);
    Py_XDECREF(fd);
    if (PyErr_Occurred())
        return -1;
    self->nobody_uid = uid;
    self->nobody_gid = gid;
    self->last.source = self->last.lower = self->last.fd = -1;
    Py_XSETREF(self->work, Py_NewRef(work));
    Py_XSETREF(self->attribute, Py_NewRef(attribute));
    self->shop.attribute = PyBytes_AS_STRING(attribute);
    Py_XSETREF(self->uuids, Py_NewRef(uuids));
    Py_XSETREF(self->on_copy, Py_NewRef(on_copy));
    Py_XSETREF(self->came_up, Py_NewRef(came_up));
    return 0;
}

static int Copies_traverse(Copies *self, visitproc visit, void *arg)
{
    Py_VISIT(self->work);
    Py_VISIT(self->uuids);
    Py_VISIT(self->on_copy);
    Py_VISIT(self->came_up);
    return 0;
}

static int Copies_clear(Copies *self)
{
    Py_CLEAR(self->work);
    Py_CLEAR(self->attribute);
    Py_CLEAR(self->uuids);
    Py_CLEAR(self->on_copy);
    Py_CLEAR(self->came_up);
    return 0;
}

static void Copies_dealloc(Copies *self)
{
    PyObject_GC_UnTrack(self);
    Copies_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyTypeObject CopiesType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Copies",
    .tp_basicsize = sizeof(Copies),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)Copies_init,
    .tp_dealloc = (destructor)Copies_dealloc,
    .tp_traverse = (traverseproc)Copies_traverse,
    .tp_clear = (inquiry)Copies_clear,
};
