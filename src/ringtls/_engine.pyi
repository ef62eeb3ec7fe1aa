lib: object
ffi: object
