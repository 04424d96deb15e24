package control

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzRequest: whatever is asked of the control socket is answered in JSON, with one sentence if it is refused.
func FuzzRequest(f *testing.F) {
	for _, path := range []string{"status", "pods", "ipam", "ports", "peers", "drops", "loglevel", "x"} {
		f.Add("GET", "/v1/"+path, []byte(nil))
	}
	for path, body := range map[string]string{
		"attach": `{"container":"c","interface":"eth0","addresses":["10.0.0.1"]}`, "detach": `{"container":"c","interface":"eth0","lost":true}`,
		"allocate": `{"container":"c","interface":"eth0","network":"n","families":["4"],"requested":["::1"]}`, "check": `{"container":"c","interface":"eth0"}`,
		"gc": `{"network":"n","valid":[{"container":"c","interface":"eth0"}]}`, "adopt": `{}`, "reload": `null`, "loglevel": `{"level":"debug"}`,
	} {
		f.Add("POST", "/v1/"+path, []byte(body))
		f.Add("PUT", "/v1/"+path, []byte(body))
	}
	h := Handler(newFake(), quiet())
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		if strings.Contains(path, "capture") || path == "/v1/routes" {
			return // a stream, see FuzzCaptureStream; the fake's routes panic on purpose
		}
		q, err := http.NewRequest(method, "http://penstock", bytes.NewReader(body))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		q.URL.Path, q.RequestURI = path, path
		w := httptest.NewRecorder()
		h.ServeHTTP(w, q)
		switch code := w.Result().StatusCode; {
		case code >= 300 && code < 400 || method == "HEAD":
		case code >= 400:
			var e struct {
				Error struct{ Code, Message string }
			}
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Error.Code == "" || e.Error.Message == "" || strings.Contains(e.Error.Message, "\n") {
				t.Fatalf("%s %q: %d, which is no sentence with a code: %q", method, path, code, w.Body)
			}
			if code == 500 {
				t.Fatalf("%s %q %q: %s", method, path, body, w.Body)
			}
		case !json.Valid(w.Body.Bytes()):
			t.Fatalf("%s %q: %q is not JSON", method, path, w.Body)
		}
	})
}

// FuzzPending: a queued delete of whatever bytes names the pod of its file, or nobody.
func FuzzPending(f *testing.F) {
	socket := filepath.Join(f.TempDir(), "p.sock")
	if err := WritePending(socket, DetachRequest{Container: "c", Interface: "eth0"}); err != nil {
		f.Fatal(err)
	}
	path := PendingPath(socket, "c", "eth0")
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte(`{"container":"other","interface":"eth0"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := Pending(socket)
		r, there := all[DeviceName("c", "eth0")]
		if err != nil || !there || len(all) != 1 || r.Container+r.Interface != "" && (r.Container != "c" || r.Interface != "eth0") {
			t.Fatalf("%q: %+v, %v", b, all, err)
		}
	})
}
