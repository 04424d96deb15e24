package e2e

import "os"

// matrix reports whether all combinations are wanted, and not only the usual ones: E2E_MATRIX=1.
func matrix() bool { return os.Getenv("E2E_MATRIX") == "1" }
