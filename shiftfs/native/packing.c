/* READDIR and READDIRPLUS of a directory that is one of a layer's: what ops/directories.py does with nearly all.
 *
 * Owns nothing; listings are kept where the handlers look for them, and either goes on with what the other has begun. A
 * directory that is merged, large, or not followed is left to Python, and so are names that are special. Loop thread.
 */
#include "contents.h"
#include "listing.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#define LARGE (256 * 1024)        /* bytes of a directory that is listed by a worker */
#define AT_ONCE 8                 /* names looked at ahead before it is looked whether there is a request */

/* An answer, as far as it is made. */
typedef struct {
    char *out;
    size_t room, used;
} Answer;

static PyObject *s_key, *s_is_impure, *s_has_other_numbers, *s_listed, *s_keep, *s_drop;

int init_listings(Lane *lane, PyObject *listings)
{
    static const struct {
        PyObject **at;
        const char *name;
    } attributes[] = {{&s_key, "key"}, {&s_is_impure, "is_impure"},
                      {&s_has_other_numbers, "has_other_numbers"}, {&s_listed, "listed"},
                      {&s_keep, "keep"}, {&s_drop, "drop"}};
    for (size_t at = 0; at < sizeof attributes / sizeof *attributes; at++)
        if (*attributes[at].at == NULL && (*attributes[at].at = PyUnicode_InternFromString(attributes[at].name)) == NULL)
            return -1;
    return PyArg_ParseTuple(listings, "O!Opi;what listings are made with", &PyDict_Type, &lane->lists.kept, &lane->lists.other,
                            &lane->lists.drops, &lane->lists.noatime) ? 0 : -1;
}

static int is_so(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    int is_false = value == Py_False;
    Py_XDECREF(value);
    PyErr_Clear();
    return !is_false;
}

/* The shown number of what has a key: its st_ino. */
static int number_of_key(const Lane *lane, uint64_t device, uint64_t number, uint64_t *shown)
{
    const Device *known = device_of(lane, device);
    if (known == NULL || (lane->is_layered && number >> 48))
        return SPECIAL;
    *shown = number + known->addend;
    return PLAIN;
}

static int key_held_by(PyObject *object, Key *key)
{
    PyObject *its_own = PyObject_GetAttr(object, s_key);
    int is_key = its_own != NULL && read_key(its_own, key) == 0;
    PyErr_Clear();
    Py_XDECREF(its_own);
    return is_key ? PLAIN : SPECIAL;
}

/* Which numbers of the layer's are those of the mount (overlay/merge.py, _tells_numbers)? */
static int told_numbers(const Lane *lane, PyObject *entry, const Part *part)
{
    if (!lane->is_layered)
        return NUMBERS_OF_ALL;
    if (part->layer < lane->first_lower && is_so(part->real, s_is_impure))
        return NUMBERS_OF_NONE;
    if (part->layer < lane->first_lower && lane->lists.drops)
        return NUMBERS_OF_FILES;
    return is_so(entry, s_has_other_numbers) ? NUMBERS_OF_FILES : NUMBERS_OF_ALL;
}

/* What the entry notes of its one part as it is listed (overlay/visible.py, Visible.lists). */
static int note_listed(PyObject *entry, const Part *part)
{
    PyObject *key = PyObject_GetAttr(part->real, s_key);
    PyObject *times = key == NULL ? NULL : Py_BuildValue("((OOO))", key, Py_False, Py_None);
    int failed = times == NULL || PyObject_SetAttr(entry, s_listed, times);
    Py_XDECREF(key);
    Py_XDECREF(times);
    return failed;
}

/* A method of what keeps the listings. */
static int call_kept(Lane *lane, PyObject *method, Inode *inode, PyObject *rows)
{
    PyObject *done = PyObject_CallMethodObjArgs(lane->lists.kept, method, inode, rows, NULL);
    Py_XDECREF(done);
    return done == NULL;
}

/* A new listing, which is kept. NULL without an exception: left to Python. */
static PyObject *list(Lane *lane, Inode *inode, const Part *parts, int count)
{
    struct stat found;
    uint64_t addend;
    Key key;
    if (count != 1 || fstat(parts[0].fd, &found) || found.st_nlink == 0 || found.st_size >= LARGE
        || key_held_by(parts[0].real, &key) || number_of_key(lane, key.device, 0, &addend))
        return NULL;
    PyObject *entry = Py_NewRef(inode->entry);
    int tells = told_numbers(lane, entry, &parts[0]);
    PyObject *rows = rows_of(parts[0].fd, addend, tells, lane->is_layered, lane->lists.noatime);
    int failed = rows != NULL && ((lane->is_layered && note_listed(entry, &parts[0])) || call_kept(lane, s_keep, inode, rows));
    Py_DECREF(entry);
    if (failed)
        Py_CLEAR(rows);
    return rows;
}

static PyObject *kept_rows(Lane *lane, Inode *inode)
{
    PyObject *rows = PyDict_GetItemWithError(lane->lists.kept, (PyObject *)inode);
    PyErr_Clear();
    return rows != NULL && count_rows(rows) >= 0 ? Py_NewRef(rows) : NULL;
}

/* The first row behind an offset; -1: an exception is set. */
static Py_ssize_t behind(PyObject *rows, uint64_t offset)
{
    Py_ssize_t from = 0, to = count_rows(rows);
    while (from < to) {
        Row row;
        Py_ssize_t middle = from + (to - from) / 2;
        if (row_at(rows, middle, &row))
            return -1;
        if (offset < row.cookie)
            to = middle;
        else
            from = middle + 1;
    }
    return from;
}

static size_t size_of(size_t length, int plus)
{
    return FUSE_DIRENT_ALIGN((plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET) + length);
}

static void write_name(struct fuse_dirent *out, uint64_t number, uint64_t cookie, int kind, const char *name, size_t length)
{
    *out = (struct fuse_dirent){number, cookie, (uint32_t)length, (uint32_t)kind};
    memcpy(out->name, name, length);
    memset(out->name + length, 0, FUSE_DIRENT_ALIGN(length) - length);
}

/* `.` and `..`, which carry no lookup count. Is there room for what comes behind them? */
static int pack_dots(Answer *answer, uint64_t offset, const uint64_t numbers[DOTS], int plus)
{
    for (uint64_t at = offset; at < DOTS; at++) {
        size_t size = size_of(at + 1, plus);
        if (answer->used + size > answer->room)
            return 0;
        struct fuse_direntplus *out = (void *)(answer->out + answer->used);
        if (plus)
            memset(&out->entry_out, 0, sizeof out->entry_out);
        write_name(plus ? &out->dirent : (void *)out, numbers[at], at + 1, S_IFDIR >> 12, "..", at + 1);
        answer->used += size;
    }
    return 1;
}

/* As many of the rows from `at` on as there is room for. SPECIAL if one of them has to be looked up. */
static int pack(Answer *answer, PyObject *rows, Py_ssize_t at)
{
    for (; at < count_rows(rows); at++) {
        Row row;
        if (row_at(rows, at, &row))
            return FAILED;
        size_t length = (size_t)PyBytes_GET_SIZE(row.name), size = size_of(length, 0);
        if (answer->used + size > answer->room)
            break;
        if (row.number == 0)
            return SPECIAL;
        write_name((void *)(answer->out + answer->used), row.number, row.cookie, row.kind, PyBytes_AS_STRING(row.name), length);
        answer->used += size;
    }
    return PLAIN;
}

/* The same of one that is special, by the handlers; nothing for what has gone. */
static int pack_other(Lane *lane, Inode *parent, const Row *row, Answer *answer, size_t size)
{
    PyObject *tuple = row_tuple(row);
    PyObject *bytes = tuple == NULL ? NULL : PyObject_CallFunctionObjArgs(lane->lists.other, parent, tuple, NULL);
    Py_XDECREF(tuple);
    if (bytes == NULL)
        return FAILED;
    if (PyBytes_Check(bytes) && (size_t)PyBytes_GET_SIZE(bytes) == size) {
        memcpy(answer->out + answer->used, PyBytes_AS_STRING(bytes), size);
        answer->used += size;
    }
    Py_DECREF(bytes);
    return PLAIN;
}

/* Rows with their attributes: each is looked up, and the kernel holds one reference more of it. `parts` are the directory's,
 * and may be others afterwards. */
static int pack_plus(Lane *lane, Inode *parent, Part *parts, int *count, PyObject *rows, Py_ssize_t *at, Answer *answer)
{
    for (; *at < count_rows(rows); ++*at) {
        Row row;
        if (row_at(rows, *at, &row))
            return FAILED;
        size_t length = (size_t)PyBytes_GET_SIZE(row.name), size = size_of(length, 1);
        const char *name = PyBytes_AS_STRING(row.name);
        if (answer->used + size > answer->room)
            break;
        struct fuse_direntplus *out = (void *)(answer->out + answer->used);
        int result = SPECIAL;
        if (*count && strlen(name) == length)
            result = lookup_in(lane, parent, parts, *count, name, row.name, &out->entry_out);
        if (result == PLAIN) {
            const struct fuse_attr *attr = &out->entry_out.attr;
            write_name(&out->dirent, attr->ino, row.cookie, (int)(attr->mode >> 12), name, length);
            answer->used += size;
        } else if (result == SPECIAL) {
            result = pack_other(lane, parent, &row, answer, size);
            if (result == FAILED)
                return FAILED;
            release_parts(parts, *count);  /* the directory may be made of others now, or not be followed any more */
            *count = directory_parts(lane, parent, parts);
        }
        if (result == FAILED)
            return FAILED;
    }
    return PLAIN;
}

/* Whatever has been adopted is to be told: an error is, to whoever asks for what comes behind. */
static int is_to_be_told(const Answer *answer)
{
    if (answer->used == 0 || !PyErr_ExceptionMatches(PyExc_OSError))
        return 0;
    PyErr_Clear();
    return 1;
}

/* pack(directory, rows, start, room) -> bytes of READDIRPLUS, of as many of the rows (cookie, name, number, type) from
 * `start` on as there is room for */
PyObject *Lane_pack(Lane *self, PyObject *args)
{
    PyObject *rows, *object;
    Py_ssize_t at, room;
    if (!PyArg_ParseTuple(args, "O!Onn", &InodeType, &object, &rows, &at, &room))
        return NULL;
    if (count_rows(rows) < 0)
        return PyErr_Format(PyExc_TypeError, "no rows");
    Part parts[MOST_LAYERS];
    int count = directory_parts(self, (Inode *)object, parts);
    PyObject *packed = PyByteArray_FromStringAndSize(NULL, room);
    Answer answer = {packed == NULL ? NULL : PyByteArray_AS_STRING(packed), (size_t)room, 0};
    if (packed != NULL && pack_plus(self, (Inode *)object, parts, &count, rows, &at, &answer) && !is_to_be_told(&answer))
        Py_CLEAR(packed);
    release_parts(parts, count);
    if (packed != NULL && PyByteArray_Resize(packed, (Py_ssize_t)answer.used))
        Py_CLEAR(packed);
    return packed;
}

/* What is to be known of a directory for its dots. */
static int dots_of(Lane *lane, Inode *inode, uint64_t numbers[DOTS])
{
    Key key;
    PyObject *above = PyObject_GetAttr(inode->entry, s_parent);
    int result = above == NULL ? SPECIAL : key_held_by(above == Py_None ? inode->entry : above, &key);
    PyErr_Clear();
    Py_XDECREF(above);
    if (result == PLAIN)
        result = number_of_key(lane, key.device, key.number, &numbers[1]);
    return result == PLAIN ? number_of_key(lane, inode->key.device, inode->key.number, &numbers[0]) : result;
}

/* Look at the rows from `at` on, `most` at the most, until there is another request. Whoever lists is busy with what he was
 * told, and what he asks for next is in the layers' caches then. Nothing is kept of what is found. */
static void look_ahead(Lane *lane, const Part *parts, int count, PyObject *rows, Py_ssize_t at, Py_ssize_t most)
{
    struct pollfd request = {.fd = lane->fd, .events = POLLIN};
    Py_ssize_t end = most < count_rows(rows) - at ? at + most : count_rows(rows);
    int is_over = !lane->spins;
    while (at < end && !is_over) {
        Row next[AT_ONCE];
        int found = 0;
        while (found < AT_ONCE && at < end && row_at(rows, at, &next[found]) == PLAIN)
            at++, found++;
        Py_BEGIN_ALLOW_THREADS
        for (int one = 0; one < found; one++)
            look_for(lane, parts, count, PyBytes_AS_STRING(next[one].name));
        is_over = found == 0 || poll(&request, 1, 0) != 0;
        Py_END_ALLOW_THREADS
        PyErr_Clear();
    }
    lane->answered_at = now();
}

/* Serve a part of a listing. `rows` are those that are kept, or NULL. */
static int serve_rows(Lane *lane, const struct fuse_in_header *header, Inode *inode, PyObject **rows, Part *parts, int *count,
                      uint64_t began)
{
    const struct fuse_read_in *in = (const void *)(header + 1);
    int plus = header->opcode == FUSE_READDIRPLUS;
    uint64_t numbers[DOTS];
    if (*count == 0 || (in->offset < DOTS && dots_of(lane, inode, numbers)))
        return SPECIAL;
    if (*rows == NULL && (*rows = list(lane, inode, parts, *count)) == NULL)
        return PyErr_Occurred() ? FAILED : SPECIAL;
    Py_ssize_t first = behind(*rows, in->offset), at = first;
    const Py_buffer *scratch = &((Contents *)lane->contents)->scratch;
    size_t most = (size_t)scratch->len;
    Answer answer = {scratch->buf, in->size < most ? in->size : most, 0};
    int result = at < 0 ? FAILED : PLAIN;
    if (result == PLAIN && pack_dots(&answer, in->offset, numbers, plus))
        result = plus ? pack_plus(lane, inode, parts, count, *rows, &at, &answer) : pack(&answer, *rows, at);
    if (result == FAILED && is_to_be_told(&answer))
        result = PLAIN;
    if (result == FAILED && PyErr_ExceptionMatches(PyExc_OSError)) {
        PyErr_Clear();  /* the handlers will say why */
        return SPECIAL;
    }
    if (result == PLAIN && answer.used == 0 && call_kept(lane, s_drop, inode, NULL))
        return FAILED;
    if (result == PLAIN)
        result = respond(lane, header, 0, answer.out, answer.used, began);
    if (result == PLAIN && plus)
        look_ahead(lane, parts, *count, *rows, at, at - first);
    return result;
}

int serve_listing(Lane *lane, const struct fuse_in_header *header, const char *body, size_t length, uint64_t began)
{
    const struct fuse_read_in *in = (const void *)body;
    Inode **slot = find_nodeid(&lane->store->by_nodeid, header->nodeid);
    if (length != sizeof *in || slot == NULL || in->offset >> 63)
        return SPECIAL;
    Inode *inode = (Inode *)Py_NewRef(*slot);
    PyObject *rows = in->offset ? kept_rows(lane, inode) : NULL;
    Py_ssize_t at = rows != NULL && in->offset >= DOTS ? behind(rows, in->offset) : 0;
    int result = FAILED;
    if (rows != NULL && in->offset >= DOTS && at == count_rows(rows)) {  /* the end, whatever has become of the directory */
        if (!call_kept(lane, s_drop, inode, NULL))
            result = respond(lane, header, 0, NULL, 0, began);
    } else if (at >= 0) {
        Part parts[MOST_LAYERS];
        int count = directory_parts(lane, inode, parts);
        result = serve_rows(lane, header, inode, &rows, parts, &count, began);
        release_parts(parts, count);
    }
    Py_XDECREF(rows);
    Py_DECREF(inode);
    return result;
}
