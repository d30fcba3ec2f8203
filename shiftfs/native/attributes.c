/* An inode's attributes, and that it has no ACL and no capability and is no terminal, where nothing about it is special:
 * what ops.attributes.getattr, ops.xattrs.getxattr and ops.control.ioctl do with nearly all inodes.
 *
 * Owns nothing. Looks at what is open, or is opened by its name and is the very inode. Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

/* The error of asking for an attribute's value. */
static int error_of(int fd, const char *name)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return getxattr(path, name, NULL, 0) < 0 ? errno : 0;
}

/* The same of an inode that has no entry yet, where it was found. */
static int error_where_found(Lane *lane, Inode *inode, const char *name)
{
    Reach reach;
    struct statx found;
    if (!reach_found(lane, inode, &reach))
        return 0;
    int error = 0, fd;
    Py_BEGIN_ALLOW_THREADS
    fd = open_reach(&reach);
    if (fd >= 0 && look_at(fd, &found) == 0 && is_key_of(&reach.key, &found))
        error = error_of(fd, name);
    close_reach(&reach, fd);
    Py_END_ALLOW_THREADS
    release_reach(&reach);
    return error;
}

/* What the kernel asks for before it checks rights, or writes, is as good as never there. */
int is_without(Lane *lane, uint64_t nodeid, const char *name)
{
    Inode **slot = find_nodeid(&lane->store->by_nodeid, nodeid);
    int is_acl = !strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default"), error;
    Part part;
    if (slot == NULL || (!is_acl && strcmp(name, "security.capability")))
        return 0;
    if ((*slot)->entry == NULL)
        error = error_where_found(lane, *slot, name);
    else {
        if (!top_of(lane, *slot, &part))
            return 0;
        Py_BEGIN_ALLOW_THREADS
        error = error_of(part.fd, name);
        Py_END_ALLOW_THREADS
        release_parts(&part, 1);
    }
    return error == ENODATA || (is_acl && error == EOPNOTSUPP);
}

/* Programs ask what they open whether it is a terminal (isatty(3)), as Python does of each file. */
int is_for_terminals(Lane *lane, uint64_t nodeid, const char *body, size_t length)
{
    const struct fuse_ioctl_in *request = (const void *)body;
    return length >= sizeof *request && length - sizeof *request == request->in_size
        && _IOC_TYPE(request->cmd) == _IOC_TYPE(TCGETS) && find_nodeid(&lane->store->by_nodeid, nodeid) != NULL;
}

/* How many real inodes an entry is made of, and that is all there is to it; 0 if there is more. */
Py_ssize_t plain_count(Lane *lane, Inode *inode)
{
    if (!lane->is_layered)
        return 1;
    PyObject *upper = PyObject_GetAttr(inode->entry, s_upper), *lowers = PyObject_GetAttr(inode->entry, s_lowers);
    PyObject *links = PyObject_GetAttr(inode->entry, s_links), *removed = PyObject_GetAttr(inode->entry, s_removed);
    int is_plain = upper != NULL && lowers != NULL && PyTuple_Check(lowers) && links == Py_None && removed == Py_False;
    Py_ssize_t count = is_plain ? (upper != Py_None) + PyTuple_GET_SIZE(lowers) : 0;
    PyErr_Clear();
    Py_XDECREF(upper);
    Py_XDECREF(lowers);
    Py_XDECREF(links);
    Py_XDECREF(removed);
    return count;
}

/* Is whatever changes an inode heard of? */
int is_followed(Inode *inode)
{
    PyObject *watch = inode->watch;
    if ((watch == NULL || watch == Py_None) && inode->parent != NULL)
        watch = ((Inode *)inode->parent)->watch;
    return tells_all(watch);
}

/* Is it written to past us (shiftfs/backing.py), so that its attributes are good for no time at all? */
int is_written(Lane *lane, Inode *inode)
{
    PyObject *written = PyObject_GetAttrString((PyObject *)lane->store, "written");
    int is_so = written == NULL ? 1 : PyDict_Contains(written, (PyObject *)inode);
    Py_XDECREF(written);
    PyErr_Clear();
    return is_so != 0;
}

int attributes_of(Lane *lane, uint64_t nodeid, struct fuse_attr_out *out)
{
    Inode **slot = find_nodeid(&lane->store->by_nodeid, nodeid);
    Inode *inode = slot == NULL ? NULL : *slot;
    Part part;
    if (inode == NULL || inode->entry == NULL || inode->unlinked || !is_followed(inode)
        || is_written(lane, inode))
        return SPECIAL;
    int is_dir = is_directory(inode);
    if (is_dir && (inode->watch == NULL || inode->watch == Py_None))
        return SPECIAL;  /* whether its listing has changed is to be looked at */
    Py_ssize_t count = plain_count(lane, inode);
    if (count == 0 || (count > 1 && !is_dir) || !top_of(lane, inode, &part))
        return SPECIAL;
    struct statx found;
    Key key = inode->key;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = statx(part.fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID, &found);
    Py_END_ALLOW_THREADS
    release_parts(&part, 1);
    if (failed || found.stx_nlink == 0 || (!is_dir && found.stx_nlink != 1) || S_ISCHR(found.stx_mode)
        || S_ISBLK(found.stx_mode))
        return SPECIAL;
    const Device *device = device_of(lane, key.device), *own = device_of(lane, statx_device(&found));
    if (device == NULL || own == NULL || (lane->is_layered && key.number >> 48))
        return SPECIAL;
    found.stx_ino = key.number;  /* its origin's */
    if (count > 1)
        found.stx_nlink = 1;
    memset(out, 0, sizeof *out);
    out->attr_valid = FOREVER;
    return describe(lane, &found, device->addend, &out->attr);
}
