/* Large writes that go from the connection to the layer's file through a pipe, so that they are copied once: into that
 * file's pages.
 *
 * Owns what is in the pipe (channel.Buffers has it), which is empty between two requests. To receive a request that way
 * takes a call more, and two for one that is no large write, so it is done only while one large write follows another.
 * Loop thread.
 */
#include "native.h"

#include <fcntl.h>
#include <unistd.h>

#define LARGE (64 * 1024)
#define PAGE 4096

static const size_t head = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in);

int init_pipe(Pipe *pipe, PyObject *ends)
{
    pipe->is_open = ends != Py_None;
    return !pipe->is_open || PyArg_ParseTuple(ends, "ii", &pipe->out, &pipe->in) ? 0 : -1;
}

void note_write(Pipe *pipe, size_t size)
{
    pipe->is_expected = size >= LARGE && pipe->is_open;
}

/* Bytes of the request, which are all there. */
static int receive_part(const Pipe *pipe, char *to, size_t size)
{
    while (size) {
        ssize_t count = read(pipe->out, to, size);
        if (count <= 0)
            return 0;
        to += count;
        size -= (size_t)count;
    }
    return 1;
}

static int receive_rest(Pipe *pipe, char *room, size_t size)
{
    size_t left = pipe->left;
    pipe->left = 0;
    return receive_part(pipe, room + size - left, left);
}

ssize_t receive_in_pipe(Pipe *pipe, int fd, char *room, size_t most)
{
    ssize_t size = splice(fd, NULL, pipe->in, NULL, most, 0);
    if (size < 0 && errno == EINVAL) {
        pipe->is_open = pipe->is_expected = 0;
        return read(fd, room, most);
    }
    if (size <= 0)
        return size;
    const struct fuse_in_header *header = (const void *)room;
    size_t all = (size_t)size, first = all < head ? all : head;
    int is_received = receive_part(pipe, room, first), is_write = is_received && header->opcode == FUSE_WRITE;
    pipe->left = all - first;
    pipe->is_expected = is_write && pipe->left >= LARGE;
    if (is_received && !pipe->is_expected)
        is_received = receive_rest(pipe, room, all);
    if (is_received)
        return size;
    pipe->is_open = pipe->is_expected = 0;
    pipe->left = 0;
    errno = EPROTO;     /* nobody knows what has been asked */
    return -1;
}

int take_rest(Pipe *pipe, char *room, size_t size)
{
    if (!pipe->left)
        return 1;
    int is_received = receive_rest(pipe, room, size);
    pipe->is_expected = 0;
    if (!is_received)
        PyErr_SetString(PyExc_OSError, "a part of a request is lost");
    return is_received;
}

ssize_t write_from_pipe(Pipe *pipe, int fd, off_t offset)
{
    size_t done = 0;
    while (pipe->left) {
        off_t at = offset + (off_t)done;
        ssize_t more = splice(pipe->out, NULL, fd, &at, pipe->left, SPLICE_F_MOVE);
        if (more < 0 && errno == EINVAL && done == 0)
            pipe->is_open = 0;  /* nothing is moved to files of that kind */
        if (more <= 0)
            return done == 0 ? -1 : (ssize_t)done;
        done += (size_t)more;
        pipe->left -= (size_t)more;
    }
    return (ssize_t)done;
}

void drop_rest(Pipe *pipe)
{
    char room[PAGE];
    while (pipe->left) {
        size_t part = pipe->left < sizeof room ? pipe->left : sizeof room;
        pipe->left = receive_part(pipe, room, part) ? pipe->left - part : 0;
    }
}
