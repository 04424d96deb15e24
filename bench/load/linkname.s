// Go lets a package declare functions without a body (thread.go) only if it has a file in assembly.
