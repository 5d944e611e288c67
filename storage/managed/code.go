// SPDX-License-Identifier: Apache-2.0

package managed

import (
	"errors"

	"diskhook/storage/managed/connector"
)

// Code is an error of VDSM's API (lib/vdsm/common/exception.py), by which
// Engine tells what happened.
type Code struct {
	Number int
	Name   string
	Text   string
}

// Error makes a code usable with errors.Is and errors.As.
func (c *Code) Error() string { return c.Text }

// The codes. They are compared by identity and never change.
var (
	NotSupported         = &Code{925, "ManagedVolumeNotSupported", "Managed volumes are not supported on this host"}
	HelperFailed         = &Code{926, "ManagedVolumeHelperFailed", "Managed Volume could not be attached or detached"}
	AlreadyAttached      = &Code{927, "ManagedVolumeAlreadyAttached", "Managed Volume is already attached."}
	UnsupportedDevice    = &Code{928, "ManagedVolumeUnsupportedDevice", "Managed Volume has no multipath device"}
	ConnectionMismatch   = &Code{929, "ManagedVolumeConnectionMismatch", "Managed Volume is known with another connection"}
	UnsupportedOperation = &Code{2009, "UnsupportedOperation", "The type of connection is not supported"}
)

// CodeOf returns the code of an error of Attach, Detach, VolumesInfo or
// ConnectorInfo; what has none of its own failed in the work itself. It is nil
// for no error.
func CodeOf(err error) *Code {
	var c *Code
	switch {
	case err == nil:
		return nil
	case errors.As(err, &c):
		return c
	case errors.Is(err, connector.ErrUnsupported):
		return UnsupportedOperation
	case errors.Is(err, connector.ErrNoMultipath):
		return UnsupportedDevice
	}
	return HelperFailed
}
