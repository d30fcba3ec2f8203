/* A file is opened to be read, or to be written as well, where nothing about that is special: what
 * descriptors.Descriptors.data does, without keeping more open than what is read or written through. And a directory, as
 * Descriptors.path does.
 *
 * Owns nothing: what it opens is its entry's from then on, within the bound on descriptors. Opens the very inode that the
 * entry is of, and never a name that may lead to another by now. System calls are made without the interpreter's lock.
 * Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where an inode is to be found: at a descriptor of its own, or at a name beneath its directory's. */
typedef struct {
    PyObject *path, *name;      /* keep both as they are */
    int fd;
} Place;

static PyObject *path_of(PyObject *entry, int *fd)
{
    PyObject *path = PyObject_GetAttr(entry, s_path);
    PyObject *number = path == NULL || path == Py_None ? NULL : PyObject_GetAttr(path, s_fd);
    *fd = number == NULL ? -1 : (int)PyLong_AsLong(number);
    Py_XDECREF(number);
    PyErr_Clear();
    if (*fd < 0)
        Py_CLEAR(path);
    return path;
}

static int find_place(PyObject *entry, Place *place)
{
    place->name = NULL;
    place->path = path_of(entry, &place->fd);
    if (place->path != NULL)
        return 1;
    PyObject *above = PyObject_GetAttrString(entry, "parent");
    place->name = above == NULL || above == Py_None ? NULL : PyObject_GetAttrString(entry, "name");
    if (place->name != NULL && PyBytes_Check(place->name))
        place->path = path_of(above, &place->fd);
    Py_XDECREF(above);
    PyErr_Clear();
    if (place->path == NULL)
        Py_CLEAR(place->name);
    return place->path != NULL;
}

static int is_the_one(int fd, const Key *key)
{
    struct statx found;
    return look_at(fd, &found) == 0 && is_key_of(key, &found);
}

/* A lease on it is not waited for here. */
int reopen(int fd, int flags)
{
    char path[40];
    flags |= O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int opened = open(path, flags);
    return opened < 0 && errno == EPERM && flags & O_NOATIME ? open(path, flags & ~O_NOATIME) : opened;
}

static int open_at(const Place *place, const Key *key, int flags)
{
    if (place->name == NULL)
        return reopen(place->fd, flags);
    int path = openat(place->fd, PyBytes_AS_STRING(place->name), O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (path < 0)
        return -1;
    int opened = is_the_one(path, key) ? reopen(path, flags) : -1;
    close(path);
    return opened;
}

int open_directory(const Lane *lane, PyObject *real)
{
    Key key;
    Place place;
    PyObject *its_own = PyObject_GetAttrString(real, "key");
    int is_fit = its_own != NULL && !read_key(its_own, &key) && device_of(lane, key.device) != NULL, opened = -1;
    Py_XDECREF(its_own);
    PyErr_Clear();
    if (!is_fit || !find_place(real, &place))
        return -1;
    if (place.name != NULL) {
        Py_BEGIN_ALLOW_THREADS
        opened = openat(place.fd, PyBytes_AS_STRING(place.name), O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (opened >= 0 && !is_the_one(opened, &key)) {
            close(opened);
            opened = -1;
        }
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(place.path);
    Py_XDECREF(place.name);
    return opened;
}

int open_content(const Lane *lane, PyObject *entry, int flags)
{
    Key key;
    PyObject *its_own = PyObject_GetAttrString(entry, "key");
    int is_fit = its_own != NULL && !read_key(its_own, &key) && key.kind == S_IFREG >> 12
        && device_of(lane, key.device) != NULL;
    Py_XDECREF(its_own);
    PyErr_Clear();
    Place place;
    if (!is_fit || !find_place(entry, &place))
        return -1;
    int opened;
    Py_BEGIN_ALLOW_THREADS
    opened = open_at(&place, &key, flags);
    Py_END_ALLOW_THREADS
    Py_DECREF(place.path);
    Py_XDECREF(place.name);
    return opened;
}
