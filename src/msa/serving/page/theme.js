// A classic script in the head, so that the remembered theme is there before anything is painted.
"use strict";
try {
  const theme = localStorage.getItem("msa-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is blocked: the system's theme it is
}
