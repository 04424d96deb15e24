// Package e2e tests the whole daemon in the laboratory of bench/lab: real penstockd processes, real namespaces,
// nothing faked. It has no code of its own outside of tests.
package e2e
