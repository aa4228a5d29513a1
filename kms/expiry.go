package kms

import "time"

// SecretExpiry is when a secret of an app expires.
type SecretExpiry struct {
	App     string
	Number  uint32
	Expires time.Time
}

// SecretExpiries lists the secrets that have an end.
func (s *Service) SecretExpiries() (list []SecretExpiry) {
	if l, err := s.serving(); err == nil {
		for _, app := range l.apps.List() {
			for i := range app.Secrets {
				if secret := &app.Secrets[i]; !secret.Expires.IsZero() {
					list = append(list, SecretExpiry{app.Name, secret.Number, secret.Expires})
				}
			}
		}
	}
	return list
}

// expiryReminder is how often the log is told of a secret that expires.
const expiryReminder = 24 * time.Hour

// reminders is when the log was last told, by app and secret.
type reminders map[SecretExpiry]time.Time

// remind tells the log of secrets that expire soon, or have.
func (s *Service) remind(l *loaded, told reminders) {
	now := s.now()
	for _, app := range l.apps.List() {
		for i := range app.Secrets {
			secret := &app.Secrets[i]
			of := SecretExpiry{app.Name, secret.Number, secret.Expires}
			if app.Disabled || !secret.Expiring(now) || now.Sub(told[of]) < expiryReminder {
				continue
			}
			told[of] = now
			if secret.Expired(now) {
				s.cfg.Log.Warn("an AppSecret has expired", "app", app.Name, "secret", secret.Number, "expired", secret.Expires)
				continue
			}
			s.cfg.Log.Warn("an AppSecret expires soon; make another with trikey app rotate-secret", "app", app.Name, "secret", secret.Number,
				"expires", secret.Expires)
		}
	}
}
