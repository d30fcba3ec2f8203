/* Files, directories and symlinks are made, as whoever asks for that.
 *
 * Owns the filesystem ids and the umask of the thread while something is made, and gives them back at once. Never opens,
 * nor takes for its own, what has been there before. What cannot be made in this way is SPECIAL, with nothing done; of what
 * has been made and is another when it is looked at, Python is asked. System calls are made without the interpreter's lock.
 * Loop thread.
 */
#include "names.h"

#include <sys/fsuid.h>
#include <unistd.h>

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

int make(Lane *lane, Inode *parent, const struct fuse_in_header *header, const Making *making, const char *name,
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
    is_made = is_name_free(lane, &place, name) && make_as(&lane->may, directory, name, making, uid, gid);
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
            result = python_did(entry, changed);
    }
    Py_DECREF(called);
    close_place(&place);
    return result;
}
