package server

import (
	"net/http"

	"github.com/penstock-net/penstock/forwarder/control"
)

// statusOf is the HTTP status with which a code travels, as the list of codes says.
var statusOf = map[control.Code]int{
	control.BadRequest:      http.StatusBadRequest,
	control.NotFound:        http.StatusNotFound,
	control.BadMethod:       http.StatusMethodNotAllowed,
	control.Conflict:        http.StatusConflict,
	control.TooLarge:        http.StatusRequestEntityTooLarge,
	control.InvalidConfig:   http.StatusUnprocessableEntity,
	control.RestartRequired: http.StatusUnprocessableEntity,
	control.Unsupported:     http.StatusUnprocessableEntity,
	control.Exhausted:       http.StatusConflict,
	control.NoSpace:         http.StatusInsufficientStorage,
	control.Internal:        http.StatusInternalServerError,
	control.NotReady:        http.StatusServiceUnavailable,
}
