/* The kernel for Python: a type `Forest` over packed bytes. Rows come by the buffer protocol, so
   that a call costs a fraction of a microsecond; numpy is not needed to build it. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "forest.h"

typedef struct {
    PyObject_HEAD
    forest *f;
} Forest;

static PyObject *new_forest(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Py_buffer view;
    char why[200] = "";
    if (kwargs && PyDict_Size(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "Forest takes packed bytes alone");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "y*:Forest", &view)) return NULL;
    forest *f;
    Py_BEGIN_ALLOW_THREADS
    f = forest_load(view.buf, (size_t)view.len, why, sizeof why);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (!f) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Forest *self = (Forest *)alloc(type, 0);
    if (!self) {
        forest_free(f);
        return NULL;
    }
    self->f = f;
    return (PyObject *)self;
}

static void free_forest(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    forest_free(((Forest *)self)->f);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* The type of a buffer's numbers: 'f', 'd' or 0. */
static char numbers(const Py_buffer *view) {
    const char *format = view->format ? view->format : "B";
    if (*format == '@' || *format == '=' || *format == '<') format++;
    return (*format == 'f' || *format == 'd') && !format[1] ? *format : 0;
}

static int whole(PyObject *given, const char *name, long *value) {
    *value = PyLong_AsLong(given);
    if (*value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be a whole number", name);
        return -1;
    }
    return 0;
}

/* predict(rows, out, finished, threads, level): fills `out`. */
static PyObject *predict(PyObject *given, PyObject *const *args, Py_ssize_t count) {
    forest *f = ((Forest *)given)->f;
    long finished, threads, level;
    Py_buffer in, out;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "write predict(rows, out, finished, threads, level)");
        return NULL;
    }
    if (whole(args[2], "finished", &finished) || whole(args[3], "threads", &threads) ||
        whole(args[4], "level", &level))
        return NULL;
    if (PyObject_GetBuffer(args[0], &in, PyBUF_STRIDED_RO | PyBUF_FORMAT)) return NULL;
    if (PyObject_GetBuffer(args[1], &out, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE | PyBUF_FORMAT)) {
        PyBuffer_Release(&in);
        return NULL;
    }
    int flat = in.ndim == 1, failed = 0;
    char sort = numbers(&in);
    const char *why = NULL;
    Py_ssize_t features = (Py_ssize_t)forest_features(f);
    if (!sort || (in.ndim != 1 && in.ndim != 2) || in.shape[in.ndim - 1] != features)
        why = "rows must be float32 or float64 numbers, one for each feature: [features] or "
              "[rows, features]";
    else if ((features > 1 && in.strides[in.ndim - 1] != in.itemsize) ||
             ((size_t)in.buf | (size_t)in.strides[0]) % (size_t)in.itemsize)
        why = "the numbers of a row must lie side by side in memory";
    Py_ssize_t rows = why || flat ? 1 : in.shape[0];
    Py_ssize_t each = forest_double(f) ? 8 : 4;
    if (!why && (numbers(&out) != (each == 8 ? 'd' : 'f') ||
                 out.len != rows * each * (Py_ssize_t)forest_outputs(f, (int)finished)))
        why = "out does not fit what the forest predicts";
    if (!why) {
        ptrdiff_t stride = flat ? 0 : in.strides[0];
        int input = sort == 'd' ? FOREST_FLOAT64 : FOREST_FLOAT32;
        if (rows == 1) { /* to let others run costs more than the row itself */
            failed = forest_predict(f, in.buf, input, stride, 1, out.buf, (int)finished, 1,
                                    (int)level);
        } else {
            Py_BEGIN_ALLOW_THREADS
            failed = forest_predict(f, in.buf, input, stride, (size_t)rows, out.buf,
                                    (int)finished, (int)threads, (int)level);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (why) {
        PyErr_SetString(PyExc_ValueError, why);
        return NULL;
    }
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *get_features(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(forest_features(((Forest *)self)->f));
}

static PyObject *get_double(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(forest_double(((Forest *)self)->f));
}

static PyObject *outputs(PyObject *self, PyObject *finished) {
    long value;
    if (whole(finished, "finished", &value)) return NULL;
    return PyLong_FromUnsignedLong(forest_outputs(((Forest *)self)->f, (int)value));
}

static PyMethodDef methods[] = {
    {"predict", (PyCFunction)(void (*)(void))predict, METH_FASTCALL, NULL},
    {"outputs", outputs, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef values[] = {
    {"features", get_features, NULL, NULL, NULL},
    {"double", get_double, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, (void *)new_forest},
    {Py_tp_dealloc, (void *)free_forest},
    {Py_tp_methods, methods},
    {Py_tp_getset, values},
    {0, NULL},
};
static PyType_Spec specification = {"sartor.kernels._forest.Forest", sizeof(Forest), 0,
                                    Py_TPFLAGS_DEFAULT, slots};

static int fill(PyObject *module) {
    PyObject *type = PyType_FromSpec(&specification);
    if (!type || PyModule_AddObjectRef(module, "Forest", type)) return -1;
    Py_DECREF(type);
    return PyModule_AddIntConstant(module, "level", forest_best_level());
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)fill}, {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_forest", NULL, 0, NULL, module_slots,
                             NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__forest(void) { return PyModuleDef_Init(&module); }
