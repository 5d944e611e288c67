// SPDX-License-Identifier: Apache-2.0

//go:build cgo && libvirt_dlopen

package main

import (
	"encoding/json"
	"errors"
	"io"
	"time"

	"libvirt.org/go/libvirt"

	"diskhook/hooks/domains"
	"diskhook/storage/failure"
)

// quorumEvents are those that a watch hands on, as a regular expression of
// GLib's; libvirt itself knows nothing of them.
const quorumEvents = "^QUORUM_(REPORT_BAD|FAILURE)$"

// reconnectEvery is how soon a watch looks whether libvirt is back.
const reconnectEvery = 500 * time.Millisecond

// watch tells of a domain's events until the input ends, whoever restarts
// libvirt meanwhile. It returns an error only where that can never work.
func watch(uri string, stdin io.Reader, stdout io.Writer) error {
	var r domains.DomainRequest
	in := json.NewDecoder(io.LimitReader(stdin, maxRequest))
	if err := in.Decode(&r); err != nil {
		return failure.New(failure.Usage, "diskhook-domain: request: %w", err)
	}
	unwanted := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		close(unwanted)
	}()
	// Connections get their events from a loop that was there before them.
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return classified("libvirt: events", err)
	}
	go func() {
		for libvirt.EventRunDefaultImpl() == nil { // it waits for the next event
		}
	}()

	out := json.NewEncoder(stdout)
	for was := error(nil); ; {
		err := listen(uri, r.Domain, out, unwanted)
		switch {
		case err == nil:
			return nil
		case isCode(err, libvirt.ERR_NO_SUPPORT), isCode(err, libvirt.ERR_ACCESS_DENIED), isCode(err, libvirt.ERR_OPERATION_DENIED):
			return err
		case was == nil || was.Error() != err.Error():
			if out.Encode(domains.Told{Why: failure.OneLine(err.Error())}) != nil {
				return nil // nobody reads
			}
		}
		was = err
		select {
		case <-unwanted:
			return nil
		case <-time.After(reconnectEvery):
		}
	}
}

var errGone = errors.New("libvirt: the connection ended")

// listen is watch over one connection. It returns nil when nobody wants it any
// more.
func listen(uri, domain string, out *json.Encoder, unwanted <-chan struct{}) error {
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		return connectError(uri, err)
	}
	defer conn.Close()
	gone := make(chan struct{}, 1)
	err = conn.RegisterCloseCallback(func(*libvirt.Connect, libvirt.ConnectCloseReason) { gone <- struct{}{} })
	if err != nil {
		return classified("libvirt: end of the connection", err)
	}
	defer func() { _ = conn.UnregisterCloseCallback() }()
	_ = conn.SetKeepAlive(5, 3) // a connection without it is noticed later

	// The callback must not wait. QEMU sends each event once a second at most.
	heard := make(chan domains.Told, 64)
	id, err := conn.DomainQemuMonitorEventRegister(nil, quorumEvents, func(_ *libvirt.Connect, dom *libvirt.Domain, e *libvirt.DomainQemuMonitorEvent) {
		if uuid, err := dom.GetUUIDString(); err != nil || uuid != domain || !json.Valid([]byte(e.Details)) {
			return
		}
		select {
		case heard <- domains.Told{Event: e.Event, Data: json.RawMessage(e.Details), Listening: true}:
		default:
		}
	}, libvirt.CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX)
	if err != nil {
		return classified("libvirt: events of QEMU", err)
	}
	defer func() { _ = conn.DomainQemuEventDeregister(id) }()
	for told := (domains.Told{Listening: true}); ; {
		if out.Encode(told) != nil {
			return nil // nobody reads
		}
		select {
		case <-unwanted:
			return nil
		case <-gone:
			return errGone
		case told = <-heard:
		}
	}
}
