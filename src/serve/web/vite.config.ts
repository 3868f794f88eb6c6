import { defineConfig } from "vite";

// Fixed names: the built files are in the repository, and a server answers for each with a tag of its content.
export default defineConfig({
  server: { proxy: { "/kiln": process.env.KILN ?? "http://127.0.0.1:7800" } },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    target: "es2022",
    assetsInlineLimit: 0, // the page's policy allows no data: addresses
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
    rollupOptions: {
      output: { entryFileNames: "kiln.js", chunkFileNames: "[name].js", assetFileNames: "kiln[extname]" },
    },
  },
});
