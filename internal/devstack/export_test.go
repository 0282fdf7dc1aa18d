package devstack

// ForgetFolder lets go of a stopped server's folder, as the end of this process would.
func ForgetFolder(p *Postgres) { p.srv.folder.close() }
