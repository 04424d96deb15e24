// Package torture kills the CNI plugin and the daemon at random instants, a thousand times, while fifty pods come and go, and
// then counts what is left: nothing may be.
//
//	worker (50)                      keeper (1)                     collector (1)
//	 namespace, bind-mounted          start the daemon               sometimes: hold all workers,
//	 ADD   ── kill ──▶ DEL until 0    kill it: while it starts,       GC with what is valid,
//	 ping host and a neighbour         when a state file appears,     compare devices and files
//	 CHECK ── kill                     or at any time                 with what should be there
//	 DEL   ── kill ──▶ DEL again      look at the files it left
//	   └ without namespace, without prevResult, twice, or never
//
// The workers behave as runtimes do: containerd's DEL is repeated until it succeeds; namespaces are sometimes deleted before it;
// the cache with prevResult is sometimes lost; some pods are never deleted at all, and only GC or the daemon's start finds them.
//
// All decisions come from one seed: each worker, the keeper and the collector have their own stream of it, so a seed makes the
// same pods, calls and delays again. How the kernel interleaves them is its own affair.
//
// Everything is in network namespaces and a mount namespace of its own, and gone when the process is.
package torture
