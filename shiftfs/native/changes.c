/* Changes of what is in the upper layer alone (or in a single directory), where nothing about it is special: what
 * ops.attributes.setattr does with nearly all files; names.c has those of names.
 *
 * Owns nothing. Whatever is not the plainest case is SPECIAL, and left to Python before anything is done, or where doing it
 * once more makes no difference. A change goes through a descriptor of the very inode that was checked, which is opened by
 * one name beneath its directory's and never by way of a symlink. System calls are made without the interpreter's lock.
 * Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHANGED (FATTR_MODE | OWNER | TIMES)
#define WITHOUT_MEANING (FATTR_FH | FATTR_LOCKOWNER | FATTR_CTIME | FATTR_KILL_SUIDGID)   /* but see takes_set_ids */

int init_changes(Lane *lane, PyObject *changes)
{
    if (changes == Py_None)
        return 0;
    Changes *may = &lane->may;
    unsigned long long opcodes;
    PyObject *hides;
    if (!PyArg_ParseTuple(changes, "KOOOOOOO!n", &opcodes, &may->uids, &may->gids, &may->made, &may->has_moved,
                          &may->has_gone, &hides, &PySet_Type, &may->pinned, &may->most_pinned))
        return -1;
    may->whiteout = NULL;
    if (hides != Py_None && !PyArg_ParseTuple(hides, "iyO", &may->whiteout_in, &may->whiteout, &may->is_hidden))
        return -1;
    may->opcodes = opcodes;
    may->own_uid = geteuid();
    may->own_gid = getegid();
    return 0;
}

/* Is what is in that layer ours to change? */
int is_changed_here(const Lane *lane, int layer)
{
    return !lane->is_layered || layer < lane->first_lower;
}

int is_key_of(const Key *key, const struct statx *found)
{
    Key seen;
    return key_of(found, &seen) && same_key(&seen, key);
}

void release_reach(Reach *reach)
{
    release_parts(&reach->part, 1);
    Py_CLEAR(reach->name);
}

int reach_real(PyObject *real, Reach *reach)
{
    PyObject *above = NULL, *key = PyObject_GetAttrString(real, "key");
    int is_found = key != NULL && read_key(key, &reach->key) == 0;
    if (is_found && !part_of(real, &reach->part, 0)) {
        above = PyObject_GetAttrString(real, "parent");
        is_found = above != NULL && above != Py_None;
        if (is_found)
            reach->name = PyObject_GetAttrString(real, "name");
        is_found = is_found && reach->name != NULL && PyBytes_Check(reach->name) && PyBytes_GET_SIZE(reach->name) > 0
            && part_of(above, &reach->part, 0);
    }
    PyErr_Clear();
    if (!is_found)
        Py_CLEAR(reach->name);
    Py_XDECREF(above);
    Py_XDECREF(key);
    return is_found;
}

/* One that has an entry. 0 if it is not for us, with no exception set. */
static int reach_entry(Lane *lane, Inode *inode, Reach *reach)
{
    PyObject *top = NULL, *gate = NULL;
    int is_dir = is_directory(inode), is_found = 0;
    if (lane->is_layered) {
        Py_ssize_t count = plain_count(lane, inode);
        gate = PyObject_GetAttrString(inode->entry, "gate");
        top = PyObject_GetAttr(inode->entry, s_upper);
        if (count == 0 || (count > 1 && !is_dir) || gate != Py_None || top == NULL || top == Py_None)
            goto done;
        reach->is_merged = count > 1;
    } else
        top = Py_NewRef(inode->entry);
    is_found = reach_real(top, reach);
done:
    PyErr_Clear();
    Py_XDECREF(top);
    Py_XDECREF(gate);
    return is_found;
}

int reach_found(Lane *lane, Inode *inode, Reach *reach)
{
    memset(reach, 0, sizeof *reach);
    if (place_of(inode) == NULL || inode->name == NULL || !part_of(inode->place, &reach->part, lane->is_layered))
        return 0;
    reach->key = inode->key;
    reach->name = Py_NewRef(inode->name);
    return 1;
}

/* One that may be changed. */
static int reach_of(Lane *lane, Inode *inode, Reach *reach)
{
    memset(reach, 0, sizeof *reach);
    if (inode->entry != NULL)
        return reach_entry(lane, inode, reach);
    if (!reach_found(lane, inode, reach))
        return 0;
    if (is_changed_here(lane, reach->part.layer))
        return 1;
    release_reach(reach);
    return 0;
}

/* A descriptor of what is there, whatever that is by now. */
int open_reach(const Reach *reach)
{
    int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
    return reach->name == NULL ? reach->part.fd : openat(reach->part.fd, PyBytes_AS_STRING(reach->name), flags);
}

void close_reach(const Reach *reach, int fd)
{
    if (reach->name != NULL && fd >= 0)
        close(fd);
}

int look_at(int fd, struct statx *found)
{
    return statx(fd, "", AT_EMPTY_PATH, SEEN, found) ? errno : 0;
}

/* Owner first, as chown(2) clears set-id bits. All of it may be done again: what it ends with is the same. */
static int apply(int fd, const Wanted *wanted)
{
    if (wanted->valid & OWNER && fchownat(fd, "", wanted->uid, wanted->gid, AT_EMPTY_PATH))
        return 0;
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (wanted->valid & FATTR_MODE && chmod(path, wanted->mode & 07777))
        return 0;
    return !(wanted->valid & TIMES) || utimensat(AT_FDCWD, path, wanted->times, 0) == 0;
}

int takes_set_ids(const Wanted *wanted, mode_t mode)
{
    return wanted->valid & FATTR_KILL_SUIDGID && !(wanted->valid & FATTR_MODE) && mode & (S_ISUID | S_ISGID);
}

static int is_plain(const struct statx *found)
{
    return found->stx_nlink != 0 && (S_ISDIR(found->stx_mode) || found->stx_nlink == 1) && !S_ISCHR(found->stx_mode)
        && !S_ISBLK(found->stx_mode);
}

static struct timespec wanted_time(uint32_t valid, uint32_t now, uint32_t given, uint64_t seconds, uint32_t nanoseconds)
{
    if (valid & now)
        return (struct timespec){0, UTIME_NOW};
    return valid & given ? (struct timespec){(time_t)seconds, nanoseconds} : (struct timespec){0, UTIME_OMIT};
}

/* The real id of a shown one, as it is to be stored. SPECIAL for one without a mapping. */
int real_id(PyObject *map, int is_given, uint32_t shown, uint32_t *real)
{
    *real = UNMAPPED;  /* which chown(2) takes for `as it is` */
    if (!is_given)
        return PLAIN;
    if (mapped_id(map, shown, real))
        return FAILED;
    return *real == UNMAPPED ? SPECIAL : PLAIN;
}

/* What is answered, of what is there afterwards. `number`: the inode's, which is its origin's. */
static int describe_changed(Lane *lane, struct statx *found, uint64_t number, const Device *device, int is_merged,
                            Changed *changed)
{
    found->stx_ino = number;
    if (is_merged)
        found->stx_nlink = 1;
    memset(&changed->attr, 0, sizeof changed->attr);
    changed->attr.attr_valid = FOREVER;
    changed->size = sizeof changed->attr;
    return describe(lane, found, device->addend, &changed->attr.attr);
}

/* A file of a lower layer, whose copy is made as is wanted. Its owner is given to somebody else only after that. */
static int set_after_copy(Lane *lane, Inode *inode, const Wanted *wanted, const Device *device, Changed *changed)
{
    int copy = -1, is_set, result = bring_up(lane, inode, wanted, &copy);
    struct statx found;
    if (result != PLAIN)
        return result;
    Py_BEGIN_ALLOW_THREADS
    is_set = (!(wanted->valid & OWNER) || apply(copy, wanted)) && look_at(copy, &found) == 0 && is_plain(&found);
    Py_END_ALLOW_THREADS
    if (is_set && wanted->valid & FATTR_MTIME && note_told(lane, inode))
        return FAILED;
    return is_set ? describe_changed(lane, &found, inode->key.number, device, 0, changed) : SPECIAL;
}

static int set_attributes(Lane *lane, Inode *inode, const struct fuse_setattr_in *in, Changed *changed)
{
    if (!(in->valid & CHANGED) || in->valid & ~(uint32_t)(CHANGED | WITHOUT_MEANING) || inode->unlinked
        || !is_followed(inode) || is_written(lane, inode) || is_at_work(lane, inode))
        return SPECIAL;
    const Device *device = device_of(lane, inode->key.device);
    if (device == NULL || (lane->is_layered && inode->key.number >> 48))
        return SPECIAL;
    Wanted wanted = {.valid = in->valid, .mode = in->mode};
    int result = real_id(lane->may.uids, in->valid & FATTR_UID, in->uid, &wanted.uid);
    if (result == PLAIN)
        result = real_id(lane->may.gids, in->valid & FATTR_GID, in->gid, &wanted.gid);
    if (result != PLAIN)
        return result;
    wanted.times[0] = wanted_time(in->valid, FATTR_ATIME_NOW, FATTR_ATIME, in->atime, in->atimensec);
    wanted.times[1] = wanted_time(in->valid, FATTR_MTIME_NOW, FATTR_MTIME, in->mtime, in->mtimensec);
    Reach reach;
    if (!reach_of(lane, inode, &reach))
        return set_after_copy(lane, inode, &wanted, device, changed);
    struct statx found;
    int fd, is_found;
    Py_BEGIN_ALLOW_THREADS
    fd = open_reach(&reach);
    is_found = fd >= 0 && look_at(fd, &found) == 0 && is_plain(&found) && is_key_of(&reach.key, &found)
        && !takes_set_ids(&wanted, found.stx_mode);
    Py_END_ALLOW_THREADS
    uint32_t uid = 0, gid = 0;
    result = is_found && device_of(lane, statx_device(&found)) != NULL ? PLAIN : SPECIAL;
    if (result == PLAIN && (mapped_id(lane->uids, found.stx_uid, &uid) || mapped_id(lane->gids, found.stx_gid, &gid)))
        result = FAILED;
    if (result == PLAIN && in->valid & (OWNER | FATTR_MODE) && (uid == UNMAPPED || gid == UNMAPPED))
        result = SPECIAL;
    if (result == PLAIN) {
        Py_BEGIN_ALLOW_THREADS
        if (!apply(fd, &wanted) || look_at(fd, &found) || !is_plain(&found))
            result = SPECIAL;
        Py_END_ALLOW_THREADS
    }
    close_reach(&reach, fd);
    if (result == PLAIN && in->valid & FATTR_MTIME && note_told(lane, inode))
        result = FAILED;
    if (result == PLAIN)
        result = describe_changed(lane, &found, inode->key.number, device, reach.is_merged, changed);
    release_reach(&reach);
    return result;
}

int change(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, Changed *changed)
{
    Inode **slot = find_nodeid(&lane->store->by_nodeid, header->nodeid);
    if (slot == NULL || PyDict_GET_SIZE(lane->viewed) != 0)
        return SPECIAL;
    Inode *inode = (Inode *)Py_NewRef(*slot);
    int result = SPECIAL;
    changed->size = 0;
    changed->error = 0;
    if (header->opcode == FUSE_SETATTR && length == sizeof(struct fuse_setattr_in))
        result = set_attributes(lane, inode, (const void *)body, changed);
    else
        result = change_name(lane, inode, header, body, length, changed);
    Py_DECREF(inode);
    return result;
}
