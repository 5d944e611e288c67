// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"errors"
	"strings"
	"testing"

	"diskhook/storage/command/commandtest"
	"diskhook/storage/failure"
	"diskhook/storage/host"
)

// The texts are those of qemu-storage-daemon 7.2.
func TestServesVhostUser(t *testing.T) {
	const echo = "qemu-storage-daemon: --export type=vhost-user-blk,id=e,node-name=nosuch,addr.type=unix,addr.path=/nosuch: "
	for name, c := range map[string]struct {
		answer commandtest.Answer
		says   string
	}{
		"can":      {commandtest.Answer{Code: 1, Stderr: echo + "Cannot find device='' nor node-name='nosuch'"}, ""},
		"cannot":   {commandtest.Answer{Code: 1, Stderr: echo + "Parameter 'type' does not accept value 'vhost-user-blk'"}, "does not accept value"},
		"anything": {commandtest.Answer{}, "it accepts what cannot be"},
		"missing":  {commandtest.Answer{Code: -1, Err: errors.New("no such program")}, "no such program"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Service{Config: host.Config{}, Run: &commandtest.Runner{T: t, Answers: []commandtest.Answer{c.answer}}}
			s.Config.Quorum.Daemon = "/opt/qsd"
			err := s.ServesVhostUser(t.Context())
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, failure.Precondition) || !strings.HasPrefix(err.Error(), "/opt/qsd cannot serve vhost-user-blk: ") || !strings.Contains(err.Error(), c.says) || !strings.Contains(failure.HintOf(err), "transport=nbd") {
				t.Error(err)
			}
		})
	}
}
