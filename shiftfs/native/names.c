/* Names that come, go and change in the upper layer alone (or in a single directory), where nothing about them is special:
 * what some handlers in ops.namespace do with nearly all files. Here is where they do so, and which request asks for it;
 * creating.c and removing.c do it.
 *
 * Owns nothing. Whatever is not the plainest case is SPECIAL, and left to Python before anything is done. What is asked of
 * the layers is so without the interpreter's lock. Loop thread.
 */
#include "names.h"

#include <fcntl.h>
#include <sys/stat.h>

int open_place(Lane *lane, Inode *inode, Place *place)
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

void close_place(Place *place)
{
    release_parts(place->parts, place->count);
}

int error_at(int directory, const char *name, struct statx *found)
{
    return statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, SEEN, found) ? errno : 0;
}

int is_absent(const Part *parts, int from, int count, const char *name)
{
    struct statx ignored;
    for (int at = from; at < count; at++)
        if (error_at(parts[at].fd, name, &ignored) != ENOENT)
            return 0;
    return 1;
}

int is_unhidden(const Lane *lane, const Place *place, int count, const char *name)
{
    char hiding[256] = ".wh.";
    size_t length = strlen(name);
    if (!lane->is_layered || length + 4 > 255)
        return 1;
    memcpy(hiding + 4, name, length + 1);
    return is_absent(place->parts, 0, count, hiding);
}

int is_name_free(const Lane *lane, const Place *place, const char *name)
{
    return is_absent(place->parts, 0, place->count, name) && is_unhidden(lane, place, 1, name);
}

int python_failed(Changed *changed)
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

int python_did(PyObject *result, Changed *changed)
{
    if (result == NULL)
        return python_failed(changed);
    changed->error = result == Py_None ? 0 : (int)PyLong_AsLong(result);
    Py_DECREF(result);
    changed->size = 0;
    return PyErr_Occurred() ? FAILED : PLAIN;
}

static int is_name(const Lane *lane, const char *name, size_t size)
{
    return size >= 2 && size <= 256 && memchr(name, 0, size) == name + size - 1 && !memchr(name, '/', size)
        && !is_dot(name) && !(lane->is_layered && strncmp(name, ".wh.", 4) == 0);
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
