// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"

	"diskhook/storage/failure"
)

// kinds says which kind of failure a code of libvirt's is
// (virErrorNumber in libvirt/virterror.h).
func kinds() map[libvirt.ErrorNumber]*failure.Kind {
	return map[libvirt.ErrorNumber]*failure.Kind{
		libvirt.ERR_NO_DOMAIN:             failure.NotFound,
		libvirt.ERR_DOM_EXIST:             failure.Conflict,
		libvirt.ERR_OPERATION_INVALID:     failure.Conflict,
		libvirt.ERR_XML_ERROR:             failure.Usage,
		libvirt.ERR_XML_DETAIL:            failure.Usage,
		libvirt.ERR_XML_INVALID_SCHEMA:    failure.Usage,
		libvirt.ERR_INVALID_ARG:           failure.Usage,
		libvirt.ERR_RESOURCE_BUSY:         failure.Temporary,
		libvirt.ERR_OPERATION_TIMEOUT:     failure.Temporary,
		libvirt.ERR_AGENT_UNRESPONSIVE:    failure.Temporary,
		libvirt.ERR_NO_SUPPORT:            failure.Precondition,
		libvirt.ERR_CONFIG_UNSUPPORTED:    failure.Precondition,
		libvirt.ERR_OPERATION_UNSUPPORTED: failure.Precondition,
		libvirt.ERR_NO_CONNECT:            failure.Precondition,
		libvirt.ERR_AUTH_FAILED:           failure.Precondition,
		libvirt.ERR_AUTH_UNAVAILABLE:      failure.Precondition,
		libvirt.ERR_AUTH_CANCELLED:        failure.Precondition,
		libvirt.ERR_ACCESS_DENIED:         failure.Precondition,
		libvirt.ERR_OPERATION_DENIED:      failure.Precondition,
	}
}

// classified names the object of an error of libvirt's and gives it its kind.
// nil stays nil.
func classified(object string, err error) error {
	var virt libvirt.Error
	if !errors.As(err, &virt) {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s: %w", object, err)
	}
	err = fmt.Errorf("%s: %w", object, said{virt})
	if kind := kinds()[virt.Code]; kind != nil {
		err = failure.Wrap(kind, err)
	}
	return err
}

// said is an error of libvirt's in libvirt's own words alone.
type said struct{ virt libvirt.Error }

func (s said) Error() string { return failure.OneLine(s.virt.Message) }
func (s said) Unwrap() error { return s.virt }

func isCode(err error, code libvirt.ErrorNumber) bool {
	var virt libvirt.Error
	return errors.As(err, &virt) && virt.Code == code
}

// gone says that there is no such domain, or no more.
func gone(err error) bool { return isCode(err, libvirt.ERR_NO_DOMAIN) }

// connectError is why there is no connection, with what usually helps. The
// error of a missing library comes with no better code than a missing daemon.
func connectError(uri string, err error) error {
	err = classified("libvirt "+failure.OneLine(uri), err)
	if failure.KindOf(err) == nil {
		err = failure.Wrap(failure.Precondition, err)
	}
	return failure.Hint(err, "see whether `virsh --connect %s list` works; libvirt and its daemon must be installed and running, and root may connect", failure.OneLine(uri))
}
