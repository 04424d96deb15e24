package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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
	h := handler(newFake(), quiet(), context.Background(), new(sync.WaitGroup))
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		if strings.Contains(path, "capture") || path == "/v1/routes" {
			return // a stream, see package capture; the fake's routes panic on purpose
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
