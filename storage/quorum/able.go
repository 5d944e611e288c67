// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"
	"errors"
	"strings"
	"time"

	"diskhook/storage/command"
	"diskhook/storage/failure"
)

// ServesVhostUser finds out whether the daemon of this host can serve a set as
// VhostUser: QEMU may be built without. The error is a failure.Precondition.
//
// A daemon that can gets past the export's type, and stops at its node, which
// does not exist.
func (s *Service) ServesVhostUser(ctx context.Context) error {
	_, err := s.Run.Run(ctx, command.Cmd{
		Name: s.daemon(), Timeout: 10 * time.Second,
		Args: []string{"--export", "type=vhost-user-blk,id=e,node-name=nosuch,addr.type=unix,addr.path=/nosuch"},
	})
	var said *command.Error
	switch {
	case errors.As(err, &said) && strings.Contains(said.Stderr, "node-name='nosuch'"):
		return nil
	case err == nil:
		err = errors.New("it accepts what cannot be")
	}
	err = failure.New(failure.Precondition, "%s cannot serve vhost-user-blk: %w", s.daemon(), err)
	return failure.Hint(err, "use transport=nbd, or name a qemu-storage-daemon that can as quorum.daemon in diskhook.toml")
}
