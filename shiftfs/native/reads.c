/* The object by which a session asks about its requests that wait on threads (waiting.c), and lets go of them: reads.py.
 *
 * Owns the session's hold on its connection, which outlives it as long as a thread is at one of its requests. Never does
 * what is asked by one. Loop thread, with the threads' lock.
 */
#include "waiting.h"

#include <stdlib.h>

static Job *find_job(struct connection *connection, uint64_t unique)
{
    Job *job = connection->jobs;
    while (job != NULL && job->unique != unique)
        job = job->next;
    return job;
}

/* interrupt(unique) -> does such a request wait? A signal has come for its caller. */
static PyObject *Reads_interrupt(Reads *self, PyObject *number)
{
    uint64_t unique = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&pool.lock);
    Job *job = find_job(self->connection, unique);
    int waits = job != NULL && !job->is_answered;
    if (waits)
        job->is_interrupted = 1;
    pthread_mutex_unlock(&pool.lock);
    return PyBool_FromLong(waits);
}

/* interrupted() -> [(unique, pid)] of those that wait though a signal has come for their callers */
static PyObject *Reads_interrupted(Reads *self, PyObject *unused)
{
    struct {
        uint64_t unique;
        uint32_t pid;
    } found[MOST_THREADS + MOST_LOST];
    size_t count = 0;
    pthread_mutex_lock(&pool.lock);
    for (Job *job = self->connection->jobs; job != NULL && count < sizeof found / sizeof *found; job = job->next)
        if (job->is_interrupted && !job->is_answered) {
            found[count].unique = job->unique;
            found[count++].pid = job->pid;
        }
    pthread_mutex_unlock(&pool.lock);
    PyObject *all = PyList_New((Py_ssize_t)count);
    for (size_t at = 0; all != NULL && at < count; at++) {
        PyObject *row = Py_BuildValue("KI", (unsigned long long)found[at].unique, (unsigned)found[at].pid);
        if (row == NULL)
            Py_CLEAR(all);
        else
            PyList_SET_ITEM(all, (Py_ssize_t)at, row);
    }
    return all;
}

/* let_go(unique): the caller has been killed, and is to wait no more; nor are others, for the thread that does. */
static PyObject *Reads_let_go(Reads *self, PyObject *number)
{
    uint64_t unique = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&pool.lock);
    Job *job = find_job(self->connection, unique);
    if (job != NULL && !job->is_answered) {
        job->is_let_go = 1;
        pool.lost++;
        answer_job(job, NULL, -EINTR);
    }
    pthread_mutex_unlock(&pool.lock);
    Py_RETURN_NONE;
}

/* waiting() -> how many have not been answered */
static PyObject *Reads_waiting(Reads *self, PyObject *unused)
{
    long count = 0;
    pthread_mutex_lock(&pool.lock);
    for (Job *job = self->connection->jobs; job != NULL; job = job->next)
        count += !job->is_answered;
    pthread_mutex_unlock(&pool.lock);
    return PyLong_FromLong(count);
}

static PyObject *counted(const Count *counts)
{
    return Py_BuildValue("KKKK", (unsigned long long)counts->count, (unsigned long long)counts->errors,
                         (unsigned long long)counts->total, (unsigned long long)counts->longest);
}

/* counts() -> of reads and of writes: (requests, errors, nanoseconds in all, the longest) since it was last asked */
static PyObject *Reads_counts(Reads *self, PyObject *unused)
{
    Count counts[2];
    pthread_mutex_lock(&pool.lock);
    memcpy(counts, self->connection->counts, sizeof counts);
    memset(self->connection->counts, 0, sizeof counts);
    pthread_mutex_unlock(&pool.lock);
    return Py_BuildValue("NN", counted(&counts[0]), counted(&counts[1]));
}

/* threads() -> how many there are, for whatever connection */
static PyObject *Reads_threads(Reads *self, PyObject *unused)
{
    pthread_mutex_lock(&pool.lock);
    long count = pool.threads;
    pthread_mutex_unlock(&pool.lock);
    return PyLong_FromLong(count);
}

/* With the lock: nobody writes to the connection from here on. An answer that is under way does not take long. */
static void close_connection(struct connection *connection)
{
    connection->fd = -1;
    while (connection->answering != 0)
        pthread_cond_wait(&pool.answered, &pool.lock);
}

/* close(): its descriptor may be closed from here on */
static PyObject *Reads_close(Reads *self, PyObject *unused)
{
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&pool.lock);
    close_connection(self->connection);
    pthread_mutex_unlock(&pool.lock);
    Py_END_ALLOW_THREADS
    pthread_mutex_lock(&pool.lock);
    drop_over(self->connection);
    pthread_mutex_unlock(&pool.lock);
    Py_RETURN_NONE;
}

static PyObject *Reads_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    pthread_once(&once, prepare_once);
    Reads *made = (Reads *)type->tp_alloc(type, 0);
    if (made == NULL || (made->connection = calloc(1, sizeof *made->connection)) == NULL) {
        Py_XDECREF(made);
        return PyErr_NoMemory();
    }
    made->connection->fd = fd;
    made->connection->is_in_use = 1;
    return (PyObject *)made;
}

static void Reads_dealloc(Reads *self)
{
    if (self->connection != NULL) {
        pthread_mutex_lock(&pool.lock);
        close_connection(self->connection);
        self->connection->is_in_use = 0;
        drop_over(self->connection);
        release_connection(self->connection);
        pthread_mutex_unlock(&pool.lock);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Reads_methods[] = {
    {"interrupt", (PyCFunction)Reads_interrupt, METH_O, NULL},
    {"interrupted", (PyCFunction)Reads_interrupted, METH_NOARGS, NULL},
    {"let_go", (PyCFunction)Reads_let_go, METH_O, NULL},
    {"waiting", (PyCFunction)Reads_waiting, METH_NOARGS, NULL},
    {"counts", (PyCFunction)Reads_counts, METH_NOARGS, NULL},
    {"threads", (PyCFunction)Reads_threads, METH_NOARGS, NULL},
    {"close", (PyCFunction)Reads_close, METH_NOARGS, NULL},
    {"written", (PyCFunction)Reads_written, METH_VARARGS, NULL},
    {NULL},
};

PyTypeObject ReadsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "shiftfs._native.Reads",
    .tp_basicsize = sizeof(Reads),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = Reads_new,
    .tp_dealloc = (destructor)Reads_dealloc,
    .tp_methods = Reads_methods,
};
