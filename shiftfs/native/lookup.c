/* A name over the layers, where nothing about it is special: what ops.namespace.lookup does with nearly all names.
 *
 * Owns nothing. Whatever is not the plainest case is SPECIAL, and left to Python: merged directories, files of several
 * names, anything with attributes of the overlay's own, hidden names, what is on a device of which nothing is known yet, and
 * whatever fails. System calls are made without the interpreter's lock. Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OWN ".shiftfs-"          /* a name that leads from the root to the mount's root, once, begins with it */
#define LISTED 4096               /* bytes of names of attributes; more are left to Python */

/* A number that an object has as an attribute; -1 if it has none, which is no error here. */
static long number_of(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    long number = value == NULL || value == Py_None ? -1 : PyLong_AsLong(value);
    Py_XDECREF(value);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return -1;
    }
    return number;
}

void release_parts(Part *parts, int count)
{
    for (int at = 0; at < count; at++) {
        Py_DECREF(parts[at].path);
        Py_DECREF(parts[at].real);
    }
}

/* One real inode. False if it is not open (a file may be for its content alone), or has whiteouts by attribute. */
int part_of(PyObject *real, Part *part, int is_layered)
{
    part->layer = 0;
    if (is_layered) {
        PyObject *marked = PyObject_GetAttr(real, s_is_marked);
        int is_marked = marked != Py_False;
        Py_XDECREF(marked);
        if (is_marked) {
            PyErr_Clear();
            return 0;
        }
        part->layer = (int)number_of(real, s_layer);
    }
    PyObject *path = PyObject_GetAttr(real, s_path);
    if (path == Py_None) {
        Py_DECREF(path);
        path = PyObject_GetAttrString(real, "data");
    }
    if (path == NULL || path == Py_None) {
        PyErr_Clear();
        Py_XDECREF(path);
        return 0;
    }
    part->path = path;
    part->fd = (int)number_of(path, s_fd);
    if (part->fd < 0 || part->layer < 0) {
        Py_DECREF(path);
        return 0;
    }
    part->real = Py_NewRef(real);
    return 1;
}

/* A directory, opened if need be, as the first name in it is asked for. */
static int opened_part(Lane *lane, PyObject *real, Part *part)
{
    if (part_of(real, part, lane->is_layered))
        return 1;
    PyObject *path = PyObject_GetAttr(real, s_path), *opened = NULL;
    if (path == Py_None)
        opened = PyObject_CallFunction(lane->open, "Oi", real, open_directory(lane, real));
    PyErr_Clear();  /* the handlers will say why */
    int is_open = opened != NULL && part_of(real, part, lane->is_layered);
    Py_XDECREF(path);
    Py_XDECREF(opened);
    return is_open;
}

/* The directories that contribute, top to bottom; 0 if any of them is not at hand. */
static int parts_of(Lane *lane, PyObject *entry, Part *parts)
{
    if (!lane->is_layered)
        return opened_part(lane, entry, parts);
    int count = 0;
    PyObject *upper = PyObject_GetAttr(entry, s_upper);
    PyObject *lowers = upper == NULL ? NULL : PyObject_GetAttr(entry, s_lowers);
    int is_fit = lowers != NULL && PyTuple_Check(lowers) && PyTuple_GET_SIZE(lowers) < MOST_LAYERS;
    if (is_fit && upper != Py_None)
        count += is_fit = opened_part(lane, upper, parts);
    for (Py_ssize_t at = 0; is_fit && at < PyTuple_GET_SIZE(lowers); at++)
        count += is_fit = opened_part(lane, PyTuple_GET_ITEM(lowers, at), &parts[count]);
    PyErr_Clear();
    Py_XDECREF(upper);
    Py_XDECREF(lowers);
    if (!is_fit) {
        release_parts(parts, count);
        return 0;
    }
    return count;
}

/* The real inode that an inode's attributes are of, if it is open. */
int top_of(Lane *lane, Inode *inode, Part *part)
{
    if (inode->entry == NULL || !lane->is_layered)
        return inode->entry != NULL && part_of(inode->entry, part, 0);
    PyObject *upper = PyObject_GetAttr(inode->entry, s_upper), *lowers = PyObject_GetAttr(inode->entry, s_lowers);
    PyObject *top = upper != NULL && upper != Py_None ? upper
        : lowers != NULL && PyTuple_Check(lowers) && PyTuple_GET_SIZE(lowers) ? PyTuple_GET_ITEM(lowers, 0) : NULL;
    int is_open = top != NULL && part_of(top, part, 0);
    PyErr_Clear();
    Py_XDECREF(upper);
    Py_XDECREF(lowers);
    return is_open;
}

int tells_all(PyObject *watch)
{
    PyObject *steady = watch == NULL || watch == Py_None ? NULL : PyObject_GetAttr(watch, s_steady);
    int is_so = steady == Py_True;
    Py_XDECREF(steady);
    PyErr_Clear();
    return is_so;
}

/* Is all that happens in a directory heard of, and nothing under way that makes names in it special? */
static int is_steady(Lane *lane, Inode *parent)
{
    int is_so = tells_all(parent->watch) && PyDict_GET_SIZE(lane->viewed) == 0;
    is_so = is_so && parent->entry != NULL && (lane->came_from == Py_None || PyObject_Size(lane->came_from) == 0);
    PyErr_Clear();
    return is_so;
}

/* Those of a directory in which names may be plain; 0 for another. */
int directory_parts(Lane *lane, Inode *directory, Part *parts)
{
    return is_steady(lane, directory) ? parts_of(lane, directory->entry, parts) : 0;
}

static int look(int directory, const char *name, struct statx *found)
{
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;
    unsigned mask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID;
    return statx(directory, name, flags, mask, found) ? errno : 0;
}

/* Has it attributes that may be the overlay's own? -1 if that is to be found out by Python. */
static int has_private(int directory, const char *name)
{
    char names[LISTED];
    long size = syscall(LISTXATTRAT, directory, name, AT_SYMLINK_NOFOLLOW, names, sizeof names);
    if (size < 0)
        return errno == EOPNOTSUPP ? 0 : -1;
    return memmem(names, (size_t)size, "overlay", 7) != NULL;
}

/* What the layers have at a name, without the interpreter's lock. */
static int search(const Lane *lane, const Part *parts, int count, const char *name, struct statx *found, int *depth)
{
    int at = 0, error = ENOENT;
    for (; at < count && error == ENOENT; at++)
        error = look(parts[at].fd, name, found);
    if (error != 0)
        return error == ENOENT ? ABSENT : SPECIAL;
    *depth = --at;
    mode_t type = found->stx_mode & S_IFMT;
    if (type != S_IFDIR && ((type != S_IFREG && type != S_IFLNK) || found->stx_nlink != 1))
        return SPECIAL;
    if (!lane->is_layered)
        return PLAIN;
    int is_upper = parts[at].layer < lane->first_lower;
    if (is_upper || type == S_IFDIR || (type == S_IFREG && parts[at].layer < lane->last_layer))
        if (has_private(parts[at].fd, name))
            return SPECIAL;
    struct statx ignored;
    for (int below = at + 1; type == S_IFDIR && below < count; below++)
        if (look(parts[below].fd, name, &ignored) != ENOENT)
            return SPECIAL;  /* merged, or hidden there */
    size_t length = strlen(name);
    if (at > 0 && length + 4 <= 255) {
        char hiding[256] = ".wh.";
        memcpy(hiding + 4, name, length + 1);
        for (int above = 0; above < at; above++)
            if (look(parts[above].fd, hiding, &ignored) != ENOENT)
                return SPECIAL;
    }
    return PLAIN;
}

void look_for(const Lane *lane, const Part *parts, int count, const char *name)
{
    struct statx found;
    int depth;
    search(lane, parts, count, name, &found, &depth);
}

uint64_t statx_device(const struct statx *found)
{
    return (uint64_t)found->stx_dev_major << 20 | found->stx_dev_minor;
}

uint64_t statx_mount(const struct statx *found)
{
    uint64_t mount;  /* stx_mnt_id, which not all headers have */
    memcpy(&mount, (const char *)found + 144, sizeof mount);
    return mount;
}

int key_of(const struct statx *found, Key *key)
{
    uint32_t kind = found->stx_mode >> 12;
    uint64_t mount = S_ISDIR(found->stx_mode) ? statx_mount(found) : 0;
    int64_t born;
    if (!(found->stx_mask & STATX_BTIME) || mount > MOST_MOUNT
        || __builtin_mul_overflow((int64_t)found->stx_btime.tv_sec, (int64_t)1000000000, &born)
        || __builtin_add_overflow(born, (int64_t)found->stx_btime.tv_nsec, &born))
        return 0;
    *key = (Key){.device = (uint32_t)statx_device(found), .number = found->stx_ino, .born = born,
                 .kind = kind | (uint32_t)mount << 4};
    return 1;
}

const Device *device_of(const Lane *lane, uint64_t device)
{
    for (int at = 0; at < lane->device_count; at++)
        if (lane->devices[at].device == device)
            return &lane->devices[at];
    return NULL;
}

int mapped_id(PyObject *map, uint32_t from, uint32_t *to)
{
    PyObject *key = PyLong_FromUnsignedLong(from);
    PyObject *value = key == NULL ? NULL : PyObject_GetItem(map, key);
    Py_XDECREF(key);
    *to = value == NULL ? 0 : (uint32_t)PyLong_AsUnsignedLong(value);
    Py_XDECREF(value);
    return PyErr_Occurred() ? FAILED : PLAIN;
}

int describe(Lane *lane, const struct statx *found, uint64_t addend, struct fuse_attr *attr)
{
    memset(attr, 0, sizeof *attr);
    attr->ino = found->stx_ino + addend;
    attr->size = found->stx_size;
    attr->blocks = found->stx_blocks;
    attr->atime = (uint64_t)found->stx_atime.tv_sec;
    attr->mtime = (uint64_t)found->stx_mtime.tv_sec;
    attr->ctime = (uint64_t)found->stx_ctime.tv_sec;
    attr->atimensec = found->stx_atime.tv_nsec;
    attr->mtimensec = found->stx_mtime.tv_nsec;
    attr->ctimensec = found->stx_ctime.tv_nsec;
    attr->mode = found->stx_mode;
    attr->nlink = found->stx_nlink;
    attr->blksize = found->stx_blksize;
    return mapped_id(lane->uids, found->stx_uid, &attr->uid) || mapped_id(lane->gids, found->stx_gid, &attr->gid)
        ? FAILED : PLAIN;
}

int lookup_in(Lane *lane, Inode *parent, const Part *parts, int count, const char *name, PyObject *called,
              struct fuse_entry_out *out)
{
    struct statx found;
    int depth = 0, result;
    if (lane->is_layered && strncmp(name, ".wh.", 4) == 0)
        return SPECIAL;
    Py_BEGIN_ALLOW_THREADS
    result = search(lane, parts, count, name, &found, &depth);
    Py_END_ALLOW_THREADS
    return result == PLAIN ? adopt_called(lane, parent, &parts[depth], name, called, &found, out) : result;
}

int lookup(Lane *lane, uint64_t nodeid, const char *name, struct fuse_entry_out *out)
{
    Part parts[MOST_LAYERS];
    Inode **slot = find_nodeid(&lane->store->by_nodeid, nodeid);
    if (slot == NULL || (nodeid == FUSE_ROOT_ID && strncmp(name, OWN, sizeof OWN - 1) == 0))
        return SPECIAL;
    Inode *parent = (Inode *)Py_NewRef(*slot);
    int count = directory_parts(lane, parent, parts);
    int result = count == 0 ? SPECIAL : lookup_in(lane, parent, parts, count, name, NULL, out);
    release_parts(parts, count);
    Py_DECREF(parent);
    if (result == ABSENT) {
        memset(out, 0, sizeof *out);
        out->entry_valid = FOREVER;
    }
    return result;
}
